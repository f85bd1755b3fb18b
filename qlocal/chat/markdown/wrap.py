"""Break styled text into lines of at most `width` cells.

Breaks at spaces and between Chinese and Japanese characters, never before closing or after opening
punctuation; a word wider than the line is cut between graphemes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len, split_graphemes
from rich.segment import Segment
from rich.style import Style

Span = tuple[str, Style]
Line = list[Segment]


class Ornament(Segment):
    """A bar, an edge, a label: drawn, but no part of the text. What is copied leaves it out."""

    __slots__ = ()


class Joint(Segment):
    """The empty end of a line that goes on below, where the text itself has no line end."""

    __slots__ = ()


AT_BLANK = Joint("", Style(meta={"joint": " "}))
INSIDE = Joint("", Style(meta={"joint": ""}))
"""A break inside a word, or between two characters of a script without blanks."""


def joint_of(line: Line) -> str | None:
    """Return what stood where a line was broken; None where the text itself ends its line."""
    joint = next((segment for segment in reversed(line) if isinstance(segment, Joint)), None)
    return None if joint is None else " " if joint is AT_BLANK else ""


def without_joints(line: Line) -> Line:
    """Return the parts of a line that are drawn beside others: where it goes on is not known any more."""
    return [segment for segment in line if not isinstance(segment, Joint)]


def text_of(line: Line) -> str:
    """Return the text of a line without what is only drawn."""
    return "".join(segment.text for segment in line if not isinstance(segment, Ornament))


_OPENING = "（〔［｛〈《「『【“‘"
_CLOSING = "、。，．！？；：）〕］｝〉》」』】”’…ー々"
# Ideographs, kana and full-width forms. Hangul is left out: Korean has spaces and breaks there.
_WIDE = (
    "\u2e80-\u303e\u3041-\u30ff\u3105-\u33ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua000-\ua4cf\uf900-\ufaff\uff01-\uff60\U00020000-\U0003fffd"
)
_ATOM = re.compile(rf"\n|[ \t]+|[{_OPENING}]*[{_WIDE}][{_CLOSING}]*|[^\s{_WIDE}{_OPENING}]+|\S|\s")
_IS_WIDE = re.compile(rf"[{_OPENING}{_WIDE}]")


def graphemes(text: str) -> list[tuple[int, int, int]]:
    """Return start, end and cells of every character as it is seen. Rich takes a flag for two."""
    found: list[tuple[int, int, int]] = []
    for start, end, cells in split_graphemes(text)[0]:
        if found and found[-1][1] - found[-1][0] == 1 and _is_flag_half(text[start]) and _is_flag_half(text[start - 1]):
            first, _, first_cells = found.pop()
            found.append((first, end, first_cells + cells))
        else:
            found.append((start, end, cells))
    return found


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def wrap(spans: Iterable[Span], width: int) -> list[Line]:
    """Return the lines of a text; `\\n` always ends one. There is at least one line, however empty."""
    wrapper = _Wrapper(max(1, width))
    for text, style in spans:
        for atom in _ATOM.findall(text):
            wrapper.put(atom, style)
    return wrapper.finish()


def line_width(line: Line) -> int:
    """Return the cells of a line."""
    return sum(cell_len(segment.text) for segment in line)


def pad(line: Line, width: int, style: Style) -> Line:
    """Fill a line with blanks up to `width` cells."""
    missing = width - line_width(line)
    return [*line, Segment(" " * missing, style)] if missing > 0 else line


class _Wrapper:
    """The line under construction, and the word that is not yet known to fit on it."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lines: list[Line] = []
        self._line: Line = []
        self._line_cells = 0
        self._word: Line = []
        self._word_cells = 0
        self._space: Segment | None = None
        self._space_cells = 0

    def put(self, atom: str, style: Style) -> None:
        if atom == "\n":
            self._end_word()
            self._end_line()
        elif atom.isspace():
            self._end_word()
            # Indentation after a line break is kept; it never fills the whole line.
            self._space = Segment(" " * min(_blanks(atom), self._width - 1), style)
            self._space_cells = len(self._space.text)
        elif _IS_WIDE.match(atom):
            self._end_word()
            self._add(atom, style)
            self._end_word()
        else:
            self._add(atom, style)

    def finish(self) -> list[Line]:
        self._end_word()
        self._end_line()
        return self._lines

    def _add(self, text: str, style: Style) -> None:
        self._word.append(Segment(text, style))
        self._word_cells += cell_len(text)

    def _end_word(self) -> None:
        if not self._word:
            return
        if self._line_cells + self._space_cells + self._word_cells > self._width and self._line_cells:
            joint = INSIDE if self._space is None else AT_BLANK
            self._space, self._space_cells = None, 0
            self._end_line(joint)
        if self._space is not None:
            self._line.append(self._space)
            self._line_cells += self._space_cells
        if self._line_cells + self._word_cells <= self._width:
            self._line += self._word
            self._line_cells += self._word_cells
        else:
            self._cut_word()
        self._word, self._word_cells = [], 0
        self._space, self._space_cells = None, 0

    def _cut_word(self) -> None:
        for segment in self._word:
            begin = 0
            for start, _end, cells in graphemes(segment.text):
                if self._line_cells + cells > self._width and self._line_cells:
                    self._line.append(Segment(segment.text[begin:start], segment.style))
                    self._end_line(INSIDE)
                    begin = start
                self._line_cells += cells
            self._line.append(Segment(segment.text[begin:], segment.style))

    def _end_line(self, joint: Joint | None = None) -> None:
        # Words of one style become one segment: that is what the terminal is sent.
        line = list(Segment.simplify(segment for segment in self._line if segment.text))
        self._lines.append(line if joint is None else [*line, joint])
        self._line, self._line_cells = [], 0
        self._space, self._space_cells = None, 0


def _blanks(space: str) -> int:
    return sum(4 if character == "\t" else 1 for character in space)
