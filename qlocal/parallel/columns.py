"""Columns of a weight that a rank holds, and the input of each: its own come from the ranks' own outputs.

A cut may fall where the format has none: inside a GGML block, or among columns that act-order has scattered over all
groups. The rank then holds a few columns more, which get a zero for input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.formats import packing
from qlocal.weights import AffineWeight, Weight

_GROUP = 32
"""Columns of the smallest group that all kernels multiply."""


@dataclass(frozen=True)
class HeldColumns:
    """A weight (N, K') for an input of K columns. inputs: (K',) int64, the column of the input that each column of the
    weight is multiplied by, K for a zero; None where they are the same."""

    weight: Weight
    inputs: Tensor | None = None


def widened(columns: range, block_size: int) -> range:
    """Return the least range of whole blocks around `columns`."""
    return range(columns.start // block_size * block_size, -(-columns.stop // block_size) * block_size)


def inputs_of(columns: range, wide: range) -> Tensor | None:
    """Return `HeldColumns.inputs` of a weight that holds `wide` for the input `columns`."""
    if columns == wide:
        return None
    own = torch.arange(wide.start, wide.stop) - columns.start
    return own.where((own >= 0) & (own < len(columns)), len(columns))


def in_even_groups(weight: AffineWeight) -> HeldColumns:
    """Put columns that act-order has scattered into groups of 32, filled up with columns that get no input.

    weight: (N, K) with g_idx, groups of any size. A group of the result takes scale and zero point of its own one.
    """
    assert weight.g_idx is not None, "only act-order scatters columns"
    columns, groups = weight.shape[1], weight.g_idx.long()
    counts = torch.bincount(groups, minlength=weight.scales.shape[1])
    chunks = (counts + _GROUP - 1) // _GROUP  # groups of 32 that each group becomes
    first = (chunks.cumsum(0) - chunks) * _GROUP
    by_group = torch.argsort(groups, stable=True)
    nth = torch.arange(columns) - (counts.cumsum(0) - counts)[groups[by_group]]  # of its group
    inputs = torch.full((int(chunks.sum()) * _GROUP,), columns)
    inputs[first[groups[by_group]] + nth] = by_group
    codes = torch.nn.functional.pad(packing.unpack_codes(weight.codes), (0, 1))
    of_chunk = torch.repeat_interleave(torch.arange(len(chunks)), chunks)
    even = AffineWeight(
        codes=packing.pack_codes(codes[:, inputs]),
        scales=weight.scales[:, of_chunk],
        zero_points=weight.zero_points[:, of_chunk],
        group_size=_GROUP,
    )
    return HeldColumns(even, inputs)
