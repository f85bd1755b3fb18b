"""One message of the transcript, drawn: a head line, its thought, its text, and a note where something went wrong."""

from __future__ import annotations

from dataclasses import replace

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from qlocal.chat import entry_words
from qlocal.chat.entry import Entry, Look
from qlocal.chat.markdown.stream import Block, MarkdownStream, render_markdown
from qlocal.chat.markdown.wrap import Line, Ornament, line_width, without_joints, wrap
from qlocal.chat.thinking import CLOSING, Parts, answer_of, may_open, parts_of
from qlocal.clean import clean, clean_line

GUTTER_CELLS = 2
MIN_WIDTH = 20
_LONGEST_MARK = len(CLOSING) + 8


def estimated_height(entry: Entry, width: int) -> int:
    """Guess the lines of an entry from its length alone, without drawing it."""
    room = max(MIN_WIDTH, width - 2 * GUTTER_CELLS)
    text = answer_of(entry.text) if CLOSING in entry.text and not entry.is_user else entry.text
    return 3 + text.count("\n") + len(text) // room


class EntryView:
    """The lines of one entry at one width. While it streams only its open block is drawn again.

    An entry has a thought only where its model thinks; folded, that is one line, `fold_line`.
    """

    def __init__(self, entry: Entry, width: int, look: Look, *, is_unfolded: bool = False) -> None:
        self.width = max(MIN_WIDTH, width)
        self.fold_line: int | None = None
        self._look = look.quiet if entry.is_quiet else look
        self._is_unfolded = is_unfolded
        self._lines: list[Line] = []
        self._strips: list[Strip | None] = []
        self._blocks: list[Block] = []
        """Those that stand above the answer: what the user wrote, or the thought."""
        self._answer_line = 0
        self._answer_blocks: list[Block] = []
        self._raw = ""
        self._stream: MarkdownStream | None = None
        """The answer while it streams; None before it begins."""
        self._num_frozen = 0
        self._draw(entry)

    @property
    def height(self) -> int:
        return len(self._lines)

    @property
    def lines(self) -> list[Line]:
        """All lines; the parts of them that are no text are `Ornament`."""
        return self._lines

    @property
    def blocks(self) -> list[Block]:
        """What the cursor walks through, from top to bottom."""
        answer = self._stream.blocks if self._stream is not None else self._answer_blocks
        return self._blocks + [replace(block, first_line=block.first_line + self._answer_line) for block in answer]

    def strip(self, line: int) -> Strip:
        """Return a line, filled to the width."""
        strip = self._strips[line]
        if strip is None:
            drawn = Strip(without_joints(self._lines[line])).extend_cell_length(self.width).crop(0, self.width)
            strip = self._strips[line] = drawn.apply_style(self._look.base)
        return strip

    def append(self, text: str) -> None:
        """Add text to an entry that streams."""
        self._raw += text
        if self._stream is None:
            self._begin()
        elif self.fold_line is None and CLOSING in self._raw[-len(text) - _LONGEST_MARK :]:
            # All that was taken for the answer may have been the thought.
            self._begin()
        else:
            self._stream.append(clean(text))
            self._take_stream()

    def _draw(self, entry: Entry) -> None:
        quiet = self._look.palette.muted
        head = wrap([(clean_line(entry.head), self._look.head), (clean_line(entry.detail), quiet)], self._room)
        self._add([[]])
        if entry.is_user:
            self._add(self._panel(head))
            self._blocks = self._add_block(self._panel(self._plain(entry.text)), entry.text)
            return
        self._add(self._indented(head))
        self._raw = entry.text
        if entry.is_streaming:
            self._begin()
            return
        parts = parts_of(entry.text)
        self._add_thought(parts)
        lines, self._answer_blocks = render_markdown(clean(parts.answer), self._room, self._look.palette)
        self._answer_line = self.height
        self._add(self._indented(lines))
        if entry.note is not None:
            self._add(self._indented(wrap([(clean(entry.note), self._look.note)], self._room)))

    def _begin(self) -> None:
        """Draw all that has come in: what it is, thought or answer, has become clear only now."""
        head_end = self.fold_line if self.fold_line is not None else self._answer_line or self.height
        self._cut(head_end)
        self.fold_line, self._blocks, self._stream = None, [], None
        self._answer_line = head_end
        if may_open(self._raw):
            return
        parts = parts_of(self._raw)
        self._add_thought(parts)
        if parts.is_thinking:
            return
        self._answer_line, self._num_frozen = self.height, 0
        self._stream = MarkdownStream(self._room, self._look.palette)
        self._stream.append(clean(parts.answer))
        self._take_stream()

    def _take_stream(self) -> None:
        """Keep the lines that are frozen, and draw the open ones anew."""
        assert self._stream is not None, "there is an answer"
        self._cut(self._answer_line + self._num_frozen)
        self._add(self._indented(self._stream.frozen[self._num_frozen :]))
        self._num_frozen = len(self._stream.frozen)
        self._add(self._indented(self._stream.open))

    def _add_thought(self, parts: Parts) -> None:
        thought = parts.thought
        if thought is None or not (thought.strip() or parts.is_thinking):
            return
        self.fold_line = self.height
        muted = self._look.palette.muted
        sentence = entry_words.thought_head(len(thought), is_open=parts.is_thinking, is_unfolded=self._is_unfolded)
        lines = wrap([(sentence, muted)], self._room)
        if self._is_unfolded:
            bar = Ornament("│ ", muted)
            inner, _ = render_markdown(clean(thought), self._room - 2, self._look.thought)
            lines += [[bar, *line] for line in inner]
        self._blocks = self._add_block(self._indented(lines), thought)
        if not parts.is_thinking:
            self._add([[]])

    def _add(self, lines: list[Line]) -> None:
        self._lines += lines
        self._strips += [None] * len(lines)

    def _add_block(self, lines: list[Line], source: str) -> list[Block]:
        block = Block(self.height, len(lines), source)
        self._add(lines)
        return [block]

    def _cut(self, line: int) -> None:
        del self._lines[line:]
        del self._strips[line:]

    @property
    def _room(self) -> int:
        return self.width - 2 * GUTTER_CELLS

    def _plain(self, text: str) -> list[Line]:
        """What a user wrote is shown as it was written, not as Markdown."""
        return wrap([(clean(text).expandtabs(4).rstrip("\n"), self._look.user)], self._room)

    def _panel(self, lines: list[Line]) -> list[Line]:
        edge = [Ornament("▌", self._look.user_bar), Ornament(" ", self._look.user)]
        panel = Style(bgcolor=self._look.user.bgcolor)
        return [self._filled([*edge, *(_on(panel, segment) for segment in line)]) for line in lines]

    def _filled(self, line: Line) -> Line:
        missing = self.width - line_width(line)
        return [*line, Ornament(" " * missing, self._look.user)] if missing > 0 else line

    def _indented(self, lines: list[Line]) -> list[Line]:
        gutter = Ornament(" " * GUTTER_CELLS, self._look.palette.text)
        return [[gutter, *line] for line in lines]


def _on(panel: Style, segment: Segment) -> Segment:
    return segment if not segment.text else Segment(segment.text, (segment.style or Style.null()) + panel)
