"""Lines as the terminal gets them, made once each, however often they move.

Textual finishes a line (margins, filters) anew when another one stood in its place before. A log that follows its end
moves all of its lines in every frame, and nearly all of them are what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.strip import Strip


@dataclass(frozen=True)
class Finish:
    """What is done to a line of text before the terminal gets it."""

    filters: tuple[LineFilter, ...]
    background: Color
    style: Style
    """Of the cells around the text."""
    margin: int
    """Cells on the left."""
    columns: tuple[int, int]
    """The first cell that is shown, counted with the margin, and the one behind the last."""

    def of(self, line: Strip) -> Strip:
        """Return a line finished, of as many cells as are shown."""
        strip = Strip([Segment(" " * self.margin, self.style), *line], self.margin + line.cell_length)
        strip = strip.crop_extend(*self.columns, self.style)
        for line_filter in self.filters:
            strip = strip.apply_filter(line_filter, self.background)
        return strip


class FinishedLines:
    """The lines of the last frame, kept for the next one."""

    def __init__(self) -> None:
        self._finish: Finish | None = None
        # By the id of the line, which is held beside so that no other line can get it.
        self._lines: dict[int, tuple[Strip, Strip]] = {}

    def of(self, lines: Sequence[Strip], finish: Finish) -> list[Strip]:
        """Return these lines finished; those that were in the last frame and finished alike are what was returned."""
        known = self._lines if finish == self._finish else {}
        self._finish = finish
        self._lines = {id(line): known.get(id(line)) or (line, finish.of(line)) for line in lines}
        return [self._lines[id(line)][1] for line in lines]

    def forget(self) -> None:
        """Finish all anew: what the filters do has changed."""
        self._lines = {}
