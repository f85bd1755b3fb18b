"""Markdown that grows: finished units are drawn once, only the last one again with every new piece of text."""

from __future__ import annotations

from qlocal.chat.markdown.blocks import Position, split
from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.render import render_units
from qlocal.chat.markdown.wrap import Line


def render_markdown(source: str, width: int, palette: Palette) -> list[Line]:
    """Return the lines of a whole text."""
    return render_units(split(source, Position()), width, palette, is_open=False)


class MarkdownStream:
    """The lines of a text that is still being written. `lines` is always what the whole text so far gives."""

    def __init__(self, width: int, palette: Palette) -> None:
        self.width = width
        self.palette = palette
        self.frozen: list[Line] = []
        """Lines that no further text can change."""
        self.open: list[Line] = []
        self._tail = ""
        self._position = Position()
        self._checked_chars = 0

    @property
    def lines(self) -> list[Line]:
        """All lines, the frozen ones first."""
        return self.frozen + self.open

    def append(self, text: str) -> None:
        """Add a piece of the text and draw again what it can change."""
        self._tail += text
        self._freeze()
        units = split(self._tail, self._position)
        self.open = render_units(units, self.width, self.palette, is_open=True)

    def finish(self) -> None:
        """Say that nothing follows: the last block is drawn as complete."""
        units = split(self._tail, self._position)
        self.frozen += render_units(units, self.width, self.palette, is_open=False)
        self.open, self._tail = [], ""

    def _freeze(self) -> None:
        """Draw all units but the last for good. Only complete lines count: half a line may still join the one above.

        For example `#` is a heading of its own, while `#tag` goes on with the paragraph.
        """
        end = self._tail.rfind("\n") + 1
        if end <= self._checked_chars:
            return
        complete = self._tail[:end]
        units = split(complete, self._position)
        self._checked_chars = end
        if len(units) < 2:
            return
        last = units[-1]
        # `is_open` is False: a block that has another one behind it is complete.
        self.frozen += render_units(units[:-1], self.width, self.palette, is_open=False)
        start = sum(len(line) + 1 for line in complete.split("\n")[: last.first_line])
        self._tail = self._tail[start:]
        self._position = last.position
        self._checked_chars = end - start
