"""Tables: column widths by content, narrowed to the screen, cells wrapped. Nothing is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

from rich.segment import Segment

from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.wrap import Line, Span, line_width, pad, without_joints, wrap

MIN_COLUMN_CELLS = 4
_RULE_CELLS = 3


@dataclass(frozen=True)
class Cell:
    """The text of one cell and where it stands in its column: left, center or right."""

    spans: tuple[Span, ...]
    align: str = "left"


Row = tuple[Cell, ...]


def table_lines(rows: list[Row], width: int, palette: Palette) -> list[Line]:
    """Return the lines of a table whose first row is its head.

    Where the columns would become too narrow to read, each row is written as a list of `head: cell`.
    """
    num_columns = max(len(row) for row in rows)
    rows = [row + (Cell(()),) * (num_columns - len(row)) for row in rows]
    room = width - _RULE_CELLS * (num_columns - 1)
    if room < MIN_COLUMN_CELLS * num_columns:
        return _as_records(rows, width, palette)
    widths = _fit([max(_cells(row[i]) for row in rows) for i in range(num_columns)], room)
    lines = [*_row_lines(rows[0], widths, palette)]
    lines.append([Segment("─┼─".join("─" * cells for cells in widths), palette.marker)])
    for row in rows[1:]:
        lines += _row_lines(row, widths, palette)
    return lines


# A table that streams is asked for again with every piece that comes: what has not changed is remembered.
@lru_cache(maxsize=8192)
def _cells(cell: Cell) -> int:
    return max(1, *(line_width(line) for line in wrap(cell.spans, 10_000)))


def _fit(natural: list[int], room: int) -> tuple[int, ...]:
    """Narrow the widest columns, a common width for all of them, until the sum fits."""
    if sum(natural) <= room:
        return tuple(natural)
    low, high = 1, max(natural)
    while low < high:
        limit = (low + high + 1) // 2
        low, high = (limit, high) if sum(min(n, limit) for n in natural) <= room else (low, limit - 1)
    return tuple(min(n, low) for n in natural)


@lru_cache(maxsize=2048)
def _row_lines(row: Row, widths: tuple[int, ...], palette: Palette) -> list[Line]:
    columns = [
        [_aligned(without_joints(line), cells, cell.align, palette) for line in wrap(cell.spans, cells)]
        for cell, cells in zip(row, widths, strict=True)
    ]
    lines: list[Line] = []
    for parts in zip_longest(*columns):
        line: Line = []
        for part, cells in zip(parts, widths, strict=True):
            line += (
                [Segment(" ", palette.text), Segment("│", palette.marker), Segment(" ", palette.text)] if line else []
            )
            line += part or [Segment(" " * cells, palette.text)]
        lines.append(line)
    return lines


def _aligned(line: Line, cells: int, align: str, palette: Palette) -> Line:
    missing = cells - line_width(line)
    before = {"right": missing, "center": missing // 2}.get(align, 0)
    start = [Segment(" " * before, palette.text)] if before > 0 else []
    return pad([*start, *line], cells, palette.text)


def _as_records(rows: list[Row], width: int, palette: Palette) -> list[Line]:
    head, *body = rows
    lines: list[Line] = []
    for row in body:
        for name, cell in zip(head, row, strict=True):
            lines += wrap([*name.spans, (": ", palette.marker), *cell.spans], width)
        lines.append([Segment("─" * min(width, 8), palette.marker)])
    return lines or wrap([span for cell in head for span in [*cell.spans, (" ", palette.text)]], width)
