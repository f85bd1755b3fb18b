"""Where a dimension is cut among ranks: whole units, in proportion to weights. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from qlocal.errors import PlanError


def divide(total: int, unit: int, weights: Sequence[int], name: str) -> tuple[range, ...]:
    """Return the contiguous range of every rank, cut on multiples of `unit`; the last has what fills no unit.

    weights: above 0, one a rank. name: what is divided, for PlanError when a rank would get nothing.
    """
    units, all_weights = -(-total // unit), sum(weights)
    # Halves go up, so that of two equal ranks the first has the larger range.
    stops = [(2 * units * reached + all_weights) // (2 * all_weights) for reached in accumulate(weights)]
    cuts = [0, *(min(total, stop * unit) for stop in stops)]
    if any(start == stop for start, stop in pairwise(cuts)):
        in_units = f"{total} {name}" + (f" in units of {unit}" if unit > 1 else "")
        raise PlanError(
            f"{in_units} cannot be divided among {len(weights)} ranks", hint="Take --split layer, or fewer devices."
        )
    return tuple(range(start, stop) for start, stop in pairwise(cuts))


def divide_heads(
    num_heads: int, num_kv_heads: int, weights: Sequence[int]
) -> tuple[tuple[range, ...], tuple[range, ...]]:
    """Return the query heads and the KV heads of every rank.

    A KV head goes with the query heads that read it. Where there are fewer of them than ranks, several ranks hold the
    same one and share its query heads. PlanError when a rank would get no query head.
    """
    group, num_ranks = num_heads // num_kv_heads, len(weights)
    if num_kv_heads >= num_ranks:
        kv_heads = divide(num_kv_heads, 1, weights, "KV heads")
        return tuple(range(kv.start * group, kv.stop * group) for kv in kv_heads), kv_heads
    heads, held = [], []
    for kv_head, ranks in enumerate(divide(num_ranks, 1, [1] * num_kv_heads, "ranks")):
        for part in divide(group, 1, weights[ranks.start : ranks.stop], "query heads of a KV head"):
            heads.append(range(kv_head * group + part.start, kv_head * group + part.stop))
            held.append(range(kv_head, kv_head + 1))
    return tuple(heads), tuple(held)
