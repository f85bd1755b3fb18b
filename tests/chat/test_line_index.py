"""The index of lines agrees with adding up the heights."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qlocal.chat.line_index import LineIndex


@given(st.lists(st.integers(1, 9), min_size=1), st.data())
def test_every_line_belongs_to_the_entry_that_covers_it(heights: list[int], data: st.DataObject) -> None:
    index = LineIndex(heights)
    for _ in range(3):
        idx = data.draw(st.integers(0, len(heights) - 1))
        heights[idx] = data.draw(st.integers(1, 9))
        index.set_height(idx, heights[idx])
        heights.append(2)
        index.append(2)
        expected = [(i, line) for i, height in enumerate(heights) for line in range(height)]
        assert index.total == len(expected)
        assert [index.locate(line) for line in range(index.total)] == expected


def test_lines_outside_give_the_nearest_entry() -> None:
    index = LineIndex([3, 2])
    assert index.locate(-5) == (0, 0)
    assert index.locate(99) == (1, 1)
