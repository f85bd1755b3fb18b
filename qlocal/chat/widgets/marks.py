"""A list in which lines are marked: an empty box beside what is not, so that colours alone need not tell."""

from __future__ import annotations

from typing import TypeVar

from rich.segment import Segment
from textual.strip import Strip
from textual.widgets import SelectionList

T = TypeVar("T")

BOX_CELLS = 3


class Marks(SelectionList[T]):
    """Textual draws the same cross for both, bright or faint."""

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        idx = y + self.scroll_offset.y  # an option is a line, as Textual has it too
        if idx >= self.option_count or self.get_option_at_index(idx).value in self.selected:
            return strip
        box, rest = strip.divide([BOX_CELLS, strip.cell_length])
        return Strip.join([Strip([Segment(part.text.replace("X", " "), part.style) for part in box]), rest])
