"""Places in the text of a log, and the text between two of them. No widget.

Textual compares places by line, then by column. Here the line number holds entry and line inside the entry, so
that a selection stays where it is while the heights of entries above become exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Offset

from qlocal.chat.markdown.wrap import Line, Ornament, graphemes, joint_of, line_width

_LINE_BITS = 24


def place(idx: int, line: int, cell: int) -> Offset:
    """Return the place of a cell in a line of an entry."""
    return Offset(cell, idx << _LINE_BITS | line)


def entry_and_line(number: int) -> tuple[int, int]:
    """Return what the `y` of a place says."""
    return number >> _LINE_BITS, number & ((1 << _LINE_BITS) - 1)


def row(idx: int, line: int) -> int:
    """Return the `y` of all places in a line."""
    return idx << _LINE_BITS | line


def grapheme_start(line: Line, cell: int) -> int:
    """Return the cell at which the character begins that covers `cell`."""
    starts = [start for start, _, _ in _graphemes(line) if start <= cell]
    return starts[-1] if starts else 0


def grapheme_end(line: Line, cell: int) -> int:
    """Return the cell behind the character that covers the one before `cell`."""
    return next((end for _, end, _ in _graphemes(line) if end >= cell), line_width(line))


def word_around(line: Line, cell: int) -> tuple[int, int]:
    """Return the cells of the word at `cell`; of a blank or a sign that alone."""
    parts = list(_graphemes(line))
    at = next((i for i, (start, end, _) in enumerate(parts) if start <= cell < end), None)
    if at is None:
        return cell, cell
    first = last = at
    if _is_word(parts[at][2]):
        while first > 0 and _is_word(parts[first - 1][2]):
            first -= 1
        while last + 1 < len(parts) and _is_word(parts[last + 1][2]):
            last += 1
    return parts[first][0], parts[last][1]


def text_between(lines: Sequence[Line], first_cell: int, end_cell: int | None) -> str:
    """Return the text of lines from a cell of the first to a cell of the last, None for its end.

    Lines that were only broken to fit the screen become one again; bars and edges are left out.
    """
    parts: list[str] = []
    for i, line in enumerate(lines):
        is_last = i == len(lines) - 1
        text = _cut(line, first_cell if i == 0 else 0, end_cell if is_last else None)
        joint = joint_of(line)
        parts.append(text if joint is not None else text.rstrip())
        if not is_last:
            parts.append("\n" if joint is None else joint)
    return "".join(parts)


def _cut(line: Line, first_cell: int, end_cell: int | None) -> str:
    parts: list[str] = []
    at = 0
    for segment in line:
        if isinstance(segment, Ornament):
            at += cell_len(segment.text)
            continue
        for start, end, cells in graphemes(segment.text):
            if at >= first_cell and (end_cell is None or at < end_cell):
                parts.append(segment.text[start:end])
            at += cells
    return "".join(parts)


def _graphemes(line: Iterable[Segment]) -> Iterable[tuple[int, int, str]]:
    """Yield first cell, cell behind and text of every character."""
    at = 0
    for segment in line:
        for start, end, cells in graphemes(segment.text):
            if cells:
                yield at, at + cells, segment.text[start:end]
                at += cells


def _is_word(grapheme: str) -> bool:
    return grapheme[0].isalnum() or grapheme[0] == "_"
