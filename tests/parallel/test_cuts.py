"""Every unit belongs to one rank, in proportion; heads stay with the keys that they read."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlocal.errors import PlanError
from qlocal.parallel.cuts import divide, divide_heads


def test_the_unpadded_ffn_of_the_72b_is_cut_between_groups_of_128() -> None:
    first, second = divide(29_568, 128, [1, 1], "channels")
    assert (len(first), len(second)) == (14_848, 14_720)
    assert second.start % 128 == 0


@given(
    units=st.integers(8, 300),
    unit=st.sampled_from([1, 32, 128, 256]),
    weights=st.lists(st.integers(3, 9), min_size=1, max_size=4),
    rest=st.integers(0, 31),
)
def test_ranges_follow_each_other_and_stop_on_units(units: int, unit: int, weights: list[int], rest: int) -> None:
    total = units * unit + rest % unit
    parts = divide(total, unit, weights, "things")
    assert list(chain(*parts)) == list(range(total))
    assert all(part.start % unit == 0 for part in parts)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(len(part) - total * weight / sum(weights)) <= 2 * unit  # both ends are rounded


def test_a_rank_that_would_get_nothing_is_refused_with_the_numbers() -> None:
    with pytest.raises(PlanError, match="256 FFN channels in units of 256 cannot be divided among 2 ranks"):
        divide(256, 256, [1, 1], "FFN channels")


@pytest.mark.parametrize(("heads", "kv_heads"), [(64, 8), (14, 2), (32, 32), (8, 1)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_query_head_is_held_once_with_its_kv_head(heads: int, kv_heads: int, ranks: int) -> None:
    parts, held = divide_heads(heads, kv_heads, [1] * ranks)
    assert list(chain(*parts)) == list(range(heads))
    group = heads // kv_heads
    for own, own_kv in zip(parts, held, strict=True):
        assert {head // group for head in own} == set(own_kv)
        assert len(own) % len(own_kv) == 0  # as many query heads for every KV head
    assert len(list(chain(*held))) == max(ranks, kv_heads)  # replicated only where there are fewer than ranks


def test_more_ranks_than_query_heads_are_refused() -> None:
    with pytest.raises(PlanError, match="2 query heads of a KV head"):
        divide_heads(4, 2, [1] * 5)
