"""Pastes read in one piece: Textual's parser takes a character at a time, which is 0.4 s for 1 MB."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from textual import events
from textual._xterm_parser import XTermParser
from textual.drivers import linux_driver
from textual.message import Message

_START, _END = "\x1b[200~", "\x1b[201~"
_LEFT = len(_END) - 1
"""So many characters may begin a mark that goes on in the next piece."""


class WholePastes(XTermParser):
    """What a terminal sends, as events. Of a paste whose first mark came in two pieces Textual's parser takes care."""

    def __init__(self, debug: bool = False) -> None:
        self._pasted: list[str] | None = None
        self._left = ""
        """The last characters of what came before: of the paste, those that are not in `_pasted` yet."""
        self._is_theirs = False
        """Whether a paste is open that Textual's parser has begun to read."""
        super().__init__(debug)

    def feed(self, data: str) -> Iterable[Message]:
        """Yield the events of the next piece; an empty one is the end."""
        if not data:
            yield from super().feed(data)
        while data:
            if self._pasted is not None:
                data = yield from self._paste(data)
            else:
                data = yield from self._keys(data)

    def _paste(self, data: str) -> Generator[Message, None, str]:
        text = self._left + data
        pasted, end, rest = text.partition(_END)
        assert self._pasted is not None, "only then this is called"
        if not end:
            self._pasted.append(text[:-_LEFT])
            self._left = text[-_LEFT:]
            return ""
        whole = "".join([*self._pasted, pasted]).replace("\x00", "")
        self._pasted, self._left = None, ""
        yield events.Paste(whole)
        return rest

    def _keys(self, data: str) -> Generator[Message, None, str]:
        seen = self._left + data
        if _START in self._left + data[:_LEFT]:
            self._is_theirs = True
        if self._is_theirs:
            end = seen.find(_END)
            taken = len(data) if end < 0 else end + len(_END) - len(self._left)
            self._is_theirs = end < 0
            is_start = False
        else:
            at = data.find(_START)
            taken = len(data) if at < 0 else at
            is_start = at >= 0
        theirs, rest = data[:taken], data[taken:]
        if theirs:
            yield from super().feed(theirs)
        if is_start:
            self._pasted, self._left = [], ""
            return rest[len(_START) :]
        self._left = (self._left + theirs)[-_LEFT:] if not rest else ""
        return rest


def read_pastes_whole() -> None:
    """Have Textual's driver parse what the terminal sends with `WholePastes`."""
    vars(linux_driver)["XTermParser"] = WholePastes
