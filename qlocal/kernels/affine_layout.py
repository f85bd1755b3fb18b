"""The layout in which the native kernels read AWQ and GPTQ weights: one stream a row, made once at load.

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
# Rows are repacked in chunks of about this many columns in all, so that temporaries stay near 100 MB.
_CHUNK_ELEMENTS = 1 << 24


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


def pack_records(weight: AffineWeight, order: Tensor | None) -> Tensor:
    """Return the records of all rows: (N, G * record_bytes) uint8.

    group_size must be a multiple of 32. order: what `column_order` returned; activations must be gathered by it."""
    num_rows, columns = weight.shape
    group_size = weight.group_size
    num_groups = columns // group_size
    records = torch.zeros((num_rows, num_groups, record_bytes(group_size)), dtype=torch.uint8)
    # Flat first: torch calls (N, 1) contiguous whatever its strides are, and then cannot view it as bytes.
    records[:, :, 0:2] = weight.scales.flatten().contiguous().view(torch.uint8).reshape(num_rows, num_groups, 2)
    records[:, :, 2] = weight.zero_points
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, num_rows, step):
        codes = _repack_codes(weight.codes[start : start + step], order)
        records[start : start + step, :, _HEADER_BYTES:] = codes.reshape(-1, num_groups, group_size // 2)
    return records.reshape(num_rows, -1)


def _repack_codes(packed: Tensor, order: Tensor | None) -> Tensor:
    """(R, K/2) neutral nibbles -> (R, K/2) with columns j and j + 16 of every 32 in one byte."""
    codes = torch.stack([packed & 15, packed >> 4], dim=2).reshape(len(packed), -1)
    if order is not None:
        codes = codes[:, order]
    halves = codes.reshape(len(packed), -1, 2, 16)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(len(packed), -1)
