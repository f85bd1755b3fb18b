"""One message of the transcript, drawn: a head line, its text, and a note where something went wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.stream import MarkdownStream, render_markdown
from qlocal.chat.markdown.wrap import Line, pad, wrap
from qlocal.clean import clean, clean_line

GUTTER_CELLS = 2
MIN_WIDTH = 20


@dataclass(frozen=True)
class Entry:
    """What the transcript shows of a message. `note` is one sentence in the colour of a warning."""

    entry_id: int
    is_user: bool
    text: str
    head: str
    detail: str = ""
    """Stands behind the head, in a quieter colour."""
    note: str | None = None
    is_streaming: bool = False


@dataclass(frozen=True)
class Look:
    """The styles of a transcript."""

    palette: Palette
    user: Style
    """Background and text of what the user wrote."""
    user_bar: Style
    head: Style
    note: Style


def estimated_height(entry: Entry, width: int) -> int:
    """Guess the lines of an entry from its length alone, without drawing it."""
    room = max(MIN_WIDTH, width - 2 * GUTTER_CELLS)
    return 3 + entry.text.count("\n") + len(entry.text) // room


class EntryView:
    """The strips of one entry at one width. While it streams only its open block is drawn again."""

    def __init__(self, entry: Entry, width: int, look: Look) -> None:
        self.width = max(MIN_WIDTH, width)
        self._look = look
        self._stream: MarkdownStream | None = None
        self._num_frozen = 0
        self._fixed: list[Strip] = []
        self._open: list[Strip] = []
        self._draw(entry)

    @property
    def height(self) -> int:
        return len(self._fixed) + len(self._open)

    def strip(self, line: int) -> Strip:
        """Return a line of the entry."""
        fixed = len(self._fixed)
        return self._fixed[line] if line < fixed else self._open[line - fixed]

    def append(self, text: str) -> None:
        """Add text to an entry that streams."""
        assert self._stream is not None, "only an entry that streams grows"
        self._stream.append(clean(text))
        self._fixed += self._strips(self._stream.frozen[self._num_frozen :])
        self._num_frozen = len(self._stream.frozen)
        self._open = self._strips(self._stream.open)

    def _draw(self, entry: Entry) -> None:
        quiet = self._look.palette.muted
        head = wrap([(clean_line(entry.head), self._look.head), (clean_line(entry.detail), quiet)], self._room)
        if entry.is_user:
            self._fixed = [Strip([]), *self._user_strips(head + self._plain(entry.text))]
            return
        self._fixed = [Strip([]), *self._strips(head)]
        if entry.is_streaming:
            self._stream = MarkdownStream(self._room, self._look.palette)
            self.append(entry.text)
            return
        self._fixed += self._strips(render_markdown(clean(entry.text), self._room, self._look.palette))
        if entry.note is not None:
            self._fixed += self._strips(wrap([(clean(entry.note), self._look.note)], self._room))

    @property
    def _room(self) -> int:
        return self.width - 2 * GUTTER_CELLS

    def _plain(self, text: str) -> list[Line]:
        """What a user wrote is shown as it was written, not as Markdown."""
        return wrap([(clean(text).expandtabs(4).rstrip("\n"), self._look.user)], self._room)

    def _user_strips(self, lines: Iterable[Line]) -> list[Strip]:
        edge = [Segment("▌", self._look.user_bar), Segment(" ", self._look.user)]
        panel = Style(bgcolor=self._look.user.bgcolor)
        drawn = [[*edge, *Segment.apply_style(line, post_style=panel)] for line in lines]
        return [Strip(pad(line, self.width, self._look.user), self.width) for line in drawn]

    def _strips(self, lines: Iterable[Line]) -> list[Strip]:
        gutter = Segment(" " * GUTTER_CELLS, self._look.palette.text)
        return [Strip([gutter, *line]) for line in lines]
