"""Which entry stands at which line of a long log, when most heights are only estimated. Pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable


class LineIndex:
    """The heights of entries below each other. Changing the last one is cheap, any other costs what follows it."""

    def __init__(self, heights: Iterable[int] = ()) -> None:
        self._heights = list(heights)
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._heights)

    @property
    def total(self) -> int:
        """The lines of all entries together."""
        return self._up_to_date()[-1] if self._heights else 0

    def height(self, idx: int) -> int:
        """Return the lines of one entry."""
        return self._heights[idx]

    def start(self, idx: int) -> int:
        """Return the first line of an entry."""
        return self._up_to_date()[idx] - self._heights[idx]

    def locate(self, line: int) -> tuple[int, int]:
        """Return the entry at a line of the log and the line inside it; outside lines give the nearest one."""
        assert self._heights, "an empty log has no lines"
        line = max(0, min(line, self.total - 1))
        idx = bisect_right(self._up_to_date(), line)
        return idx, line - self.start(idx)

    def append(self, height: int) -> None:
        """Add an entry at the end."""
        self._heights.append(height)

    def cut(self, count: int) -> None:
        """Keep the first `count` entries alone."""
        del self._heights[count:]
        del self._ends[count:]

    def set_height(self, idx: int, height: int) -> None:
        """Correct the height of an entry."""
        if self._heights[idx] != height:
            self._heights[idx] = height
            del self._ends[idx:]

    def _up_to_date(self) -> list[int]:
        """Return the end of every entry, computed from the first changed one on."""
        end = self._ends[-1] if self._ends else 0
        for height in self._heights[len(self._ends) :]:
            end += height
            self._ends.append(end)
        return self._ends
