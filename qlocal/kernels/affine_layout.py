"""The layout in which the native kernels read AWQ and GPTQ weights: one stream a row, made once at load by
`csrc/affine_records.cpp`.

A row is G records, one a group, in the order of the columns (of the groups, with act-order):

    bytes 0..1   the scale, float16 or bfloat16 as stored
    byte  2      the zero point
    byte  3      nothing
    then         16 bytes for every 32 columns: byte j holds column j in its low nibble, column j + 16 in its high one

So all that a group needs lies beside it, and 16 bytes become 32 codes without a shuffle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.weights import AffineWeight

_HEADER_BYTES = 4


def record_bytes(group_size: int) -> int:
    """Bytes of one group's record."""
    return _HEADER_BYTES + group_size // 2


def column_order(weight: AffineWeight) -> Tensor | None:
    """Return the columns (K,) int64 sorted by group, or None where they already are.

    The weight's groups must pass `has_even_groups`."""
    if weight.g_idx is None:
        return None
    order = torch.argsort(weight.g_idx, stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order


def has_even_groups(weight: AffineWeight) -> bool:
    """Say whether every group has exactly group_size columns, wherever they stand."""
    num_groups = weight.scales.shape[1]
    if num_groups * weight.group_size != weight.shape[1]:
        return False
    if weight.g_idx is None:
        return True
    counts = torch.bincount(weight.g_idx.long(), minlength=num_groups)
    return len(counts) == num_groups and bool((counts == weight.group_size).all())
