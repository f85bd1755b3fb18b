"""What is selected in a log: where the mouse is, which cells that covers, which text it is."""

from __future__ import annotations

from rich.style import Style
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

from qlocal.chat.drawn_log import DrawnLog
from qlocal.chat.markdown.wrap import Line, line_width
from qlocal.chat.selection import entry_and_line, grapheme_end, grapheme_start, place, text_between, word_around

__all__ = ["block_at", "entry_and_line", "highlight", "place_at", "selected_text", "word_at"]


def place_at(log: DrawnLog, x: int, line: int) -> Offset | None:
    """Return the place at a cell of the log; behind the last line, the end of the log."""
    if not log.entries or log.look is None:
        return None
    is_behind = line >= log.index.total
    idx, inner = log.index.locate(line)
    lines = log.view(idx).lines
    inner = min(inner, len(lines) - 1)
    return place(idx, inner, line_width(lines[inner]) if is_behind else grapheme_start(lines[inner], max(0, x)))


def word_at(log: DrawnLog, found: Offset) -> Selection:
    """Return the word at a place."""
    idx, line = entry_and_line(found.y)
    start, end = word_around(log.view(idx).lines[line], found.x)
    return Selection(place(idx, line, start), place(idx, line, end))


def block_at(log: DrawnLog, found: Offset) -> Selection:
    """Return the block at a place, the line alone where it is none."""
    idx, line = entry_and_line(found.y)
    view = log.view(idx)
    block = next((block for block in view.blocks if block.first_line <= line < block.end_line), None)
    first, last = (line, line) if block is None else (block.first_line, block.end_line - 1)
    return Selection(place(idx, first, 0), place(idx, last, line_width(view.lines[last])))


def highlight(strip: Strip, line: Line, span: tuple[int, int] | None, style: Style) -> Strip:
    """Return a line with a part of it, from cell to cell (-1: to its end), in the style of a selection."""
    if span is None:
        return strip
    start, end = span[0], line_width(line) if span[1] == -1 else grapheme_end(line, span[1])
    if start >= end:
        return strip
    # Over what a segment says itself: `Strip.apply_style` lies under it.
    inner = [segment._replace(style=(segment.style or Style.null()) + style) for segment in strip.crop(start, end)]
    return Strip.join([strip.crop(0, start), Strip(inner), strip.crop(end, strip.cell_length)])


def selected_text(log: DrawnLog, selection: Selection) -> str:
    """Return the text of a selection. Entries that lie in it as a whole are given as their source."""
    if not log.entries or log.look is None:
        return ""
    last = len(log) - 1
    first_idx, first_line = (0, 0) if selection.start is None else entry_and_line(selection.start.y)
    last_idx, last_line = (
        (last, len(log.view(last).lines) - 1) if selection.end is None else entry_and_line(selection.end.y)
    )
    first_cell = 0 if selection.start is None else selection.start.x
    end_cell = None if selection.end is None else selection.end.x
    if first_idx == last_idx:
        return text_between(log.view(first_idx).lines[first_line : last_line + 1], first_cell, end_cell)
    parts = [text_between(log.view(first_idx).lines[first_line:], first_cell, None)]
    parts += [f"{entry.head}\n\n{entry.text}" for entry in log.entries[first_idx + 1 : last_idx]]
    parts.append(text_between(log.view(last_idx).lines[: last_line + 1], 0, end_cell))
    return "\n\n".join(part.strip("\n") for part in parts)
