"""What every neutral weight is worth: plain torch, float32, slow and obviously right.

All faster kernels are held against these two functions. No dispatch and no repacking here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.kernels.reference.ggml_blocks import decode_rows
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight

# Rows are decoded in chunks of about this many elements, so that temporaries stay near 100 MB for any matrix.
_CHUNK_ELEMENTS = 1 << 22


def select_rows(weight: Weight, row_ids: Tensor) -> Weight:
    """Return the weight made of the model's rows `row_ids` (R,) int64, in that order; any row_map is applied."""
    if isinstance(weight, AffineWeight):
        return AffineWeight(
            codes=weight.codes[row_ids],
            scales=weight.scales[row_ids],
            zero_points=weight.zero_points[row_ids],
            group_size=weight.group_size,
            g_idx=weight.g_idx,
        )
    stored_ids = row_ids if weight.row_map is None else weight.row_map[row_ids]
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.data[stored_ids])
    return BlockWeight(weight.blocks[stored_ids], weight.ggml_type, weight.columns)


def dequantize(weight: Weight) -> Tensor:
    """Return the values of a weight: (N, K) float32, or (N,) for a one-dimensional DenseWeight.

    The rows come in the model's order (row_map applied). The result is a new tensor unless the weight is
    dense float32 without a row_map."""
    if isinstance(weight, DenseWeight):
        data = weight.data if weight.row_map is None else weight.data[weight.row_map]
        return data.float()
    num_rows, columns = weight.shape
    values = torch.empty((num_rows, columns), device=_storage(weight).device)
    for start, stop in _chunks(num_rows, columns):
        values[start:stop] = _decode(_slice(weight, start, stop))
    return values


def quant_matmul(x: Tensor, weight: Weight) -> Tensor:
    """Multiply activations by a weight: x (M, K) of any float type, weight (N, K). Returns (M, N) float32."""
    num_rows, columns = weight.shape
    result = torch.empty((x.shape[0], num_rows), device=x.device)
    for start, stop in _chunks(num_rows, columns):
        result[:, start:stop] = x.float() @ _decode(_slice(weight, start, stop)).T
    return result


def _chunks(num_rows: int, columns: int) -> list[tuple[int, int]]:
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def _storage(weight: AffineWeight | BlockWeight) -> Tensor:
    return weight.codes if isinstance(weight, AffineWeight) else weight.blocks


def _slice(weight: Weight, start: int, stop: int) -> Weight:
    """Return the model's rows start..stop as views where no row_map stands in the way."""
    if isinstance(weight, AffineWeight):
        return AffineWeight(
            codes=weight.codes[start:stop],
            scales=weight.scales[start:stop],
            zero_points=weight.zero_points[start:stop],
            group_size=weight.group_size,
            g_idx=weight.g_idx,
        )
    if weight.row_map is not None:
        return select_rows(weight, torch.arange(start, stop, device=weight.row_map.device))
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.data[start:stop])
    return BlockWeight(weight.blocks[start:stop], weight.ggml_type, weight.columns)


def _decode(weight: Weight) -> Tensor:
    if isinstance(weight, DenseWeight):
        return weight.data.float()
    if isinstance(weight, BlockWeight):
        return decode_rows(weight.blocks, weight.ggml_type)
    return _decode_affine(weight)


def _decode_affine(weight: AffineWeight) -> Tensor:
    """Compute (code - zero) * scale in float32: one exact subtraction and one rounded product."""
    num_rows, columns = weight.shape
    codes = torch.stack([weight.codes & 15, weight.codes >> 4], dim=2).reshape(num_rows, columns)
    scales, zeros = weight.scales.float(), weight.zero_points.float()
    if weight.g_idx is not None:
        groups = weight.g_idx.long()
        return (codes.float() - zeros[:, groups]) * scales[:, groups]
    # One group a row (group_size -1 on disk) and K that a group divides are the same case here.
    grouped = codes.float().reshape(num_rows, scales.shape[1], weight.group_size)
    return ((grouped - zeros.unsqueeze(2)) * scales.unsqueeze(2)).reshape(num_rows, columns)
