"""Rectangles of stored tensors, so that a rank of a tensor split reads what it holds and no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlocal.formats import gguf_rows
from qlocal.formats.base import Region, StoredTensor
from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.models.base import TensorSpec
from qlocal.weights import AffineWeight

_WORD = 8
"""Codes of an int32."""


def cut(data: Tensor, region: Region) -> Tensor:
    """Return the region of a dense (N, K) or (N,) as a view."""
    if region.rows is not None:
        data = data[region.rows.start : region.rows.stop]
    return data if region.columns is None else data[:, region.columns.start : region.columns.stop]


def cut_blocks(blocks: Tensor, region: Region, ggml_type: GgmlType) -> Tensor:
    """Return the region of rows of blocks (N, row_bytes) uint8; a part of the columns is copied, rows are a view."""
    layout = LAYOUTS[ggml_type]
    if region.columns is None:
        return cut(blocks, region)
    ends = (region.columns.start, region.columns.stop)
    assert not any(end % layout.block_size for end in ends), f"columns {ends} part a block of {layout.block_size}"
    first, last = (end // layout.block_size * layout.block_bytes for end in ends)
    return cut(blocks, Region(region.rows, range(first, last))).contiguous()


def permuted_rows(spec: TensorSpec, rows: range | None) -> Tensor:
    """Return the row map of a tensor whose heads' rows a GGUF file holds in pairs, or of whole heads of it."""
    row_map = gguf_rows.permuted_rows(spec.shape[0], spec.permuted_heads)
    if rows is None:
        return row_map
    head_rows = spec.shape[0] // spec.permuted_heads
    assert not rows.start % head_rows and not rows.stop % head_rows, f"rows {rows} part a head of {head_rows}"
    return row_map[rows.start : rows.stop] - rows.start  # rows move inside their head


@dataclass(frozen=True)
class CodeRegion:
    """A region of an AWQ or GPTQ linear. groups: those whose scales belong to it; group_size: as stored."""

    rows: range
    columns: range
    groups: range
    group_size: int
    is_awq: bool

    @classmethod
    def of(cls, region: Region, stored: StoredTensor, *, is_permuted: bool) -> CodeRegion:
        """Say what of `stored` belongs to a region; with permuted columns, all groups do."""
        num_rows, num_columns = stored.shape
        rows, columns = region.rows or range(num_rows), region.columns or range(num_columns)
        ends = (rows.start, rows.stop, columns.start, columns.stop)
        assert not any(end % _WORD for end in ends), f"{region} parts words of {_WORD} codes"
        size = stored.group_size
        assert size is not None, "a reader tells the group size of codes"
        groups = range(columns.start // size, -(-columns.stop // size))
        return cls(rows, columns, range(num_columns // size) if is_permuted else groups, size, stored.storage == "awq")

    def parts(self, loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the region of the stored qweight, qzeros and scales, as views."""
        per_word = (1, _WORD) if self.is_awq else (_WORD, 1)  # columns and rows of a word of qweight
        groups = slice(self.groups.start, self.groups.stop)
        return {
            "qweight": loaded["qweight"][_slice(self.columns, per_word[0]), _slice(self.rows, per_word[1])],
            "qzeros": loaded["qzeros"][groups, _slice(self.rows, _WORD)],
            "scales": loaded["scales"][groups, _slice(self.rows, 1)],
        }

    def weight(self, decoded: AffineWeight, g_idx: Tensor | None) -> AffineWeight:
        """Return what was decoded from `parts` with its groups. g_idx: (K,) of the whole linear, or None."""
        if g_idx is not None:
            columns = slice(self.columns.start, self.columns.stop)
            return replace(decoded, group_size=self.group_size, g_idx=g_idx[columns].contiguous())
        offset, count = self.columns.start % self.group_size, len(self.columns)
        # Smaller groups with repeated scales, where a cut falls inside one: on both sides of it the scale is kept.
        size = math.gcd(self.group_size, offset, count)
        if size == self.group_size:
            return replace(decoded, group_size=size)
        group = (torch.arange(0, count, size) + offset) // self.group_size
        return replace(
            decoded, group_size=size, scales=decoded.scales[:, group], zero_points=decoded.zero_points[:, group]
        )


def _slice(indices: range, step: int) -> slice:
    return slice(indices.start // step, indices.stop // step)
