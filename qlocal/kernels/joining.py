"""Weights with one input as one weight, their rows one after another: q/k/v, or gate and up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight


def can_join(first: Weight, other: Weight) -> bool:
    """Say whether one kernel call can compute both."""
    if isinstance(first, DenseWeight) and isinstance(other, DenseWeight):
        return first.data.dtype == other.data.dtype
    if isinstance(first, BlockWeight) and isinstance(other, BlockWeight):
        return first.ggml_type == other.ggml_type
    if isinstance(first, AffineWeight) and isinstance(other, AffineWeight):
        same_kind = first.group_size == other.group_size and first.scales.dtype == other.scales.dtype
        return same_kind and _same_order(first.g_idx, other.g_idx)
    return False


def join(weights: Sequence[Weight]) -> Weight:
    """Copy weights that can be joined into one; a single one is returned as it is."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if isinstance(first, DenseWeight):
        return DenseWeight(_cat(weights, "data"), _joined_row_map(weights))
    if isinstance(first, BlockWeight):
        return replace(first, blocks=_cat(weights, "blocks"), row_map=_joined_row_map(weights))
    codes, scales, zero_points = (_cat(weights, name) for name in ("codes", "scales", "zero_points"))
    return replace(first, codes=codes, scales=scales, zero_points=zero_points)


def _same_order(first: Tensor | None, other: Tensor | None) -> bool:
    if first is None or other is None:
        return first is other
    return torch.equal(first, other)


def _cat(weights: Sequence[Weight], name: str) -> Tensor:
    return torch.cat([getattr(weight, name) for weight in weights])


def _joined_row_map(weights: Sequence[Weight]) -> Tensor | None:
    maps = [getattr(weight, "row_map", None) for weight in weights]
    if all(row_map is None for row_map in maps):
        return None
    parts, offset = [], 0
    for weight, row_map in zip(weights, maps, strict=True):
        rows = weight.shape[0]
        parts.append((torch.arange(rows) if row_map is None else row_map) + offset)
        offset += rows
    return torch.cat(parts)
