"""The products of several weights with one input, beside each other, and as few launches as there are weights.

For few tokens they come as partial sums, which whatever is computed next adds up: a sum of its own would be one more
launch, and one more time through memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlocal.kernels import reference
from qlocal.kernels.dispatch import PreparedWeight
from qlocal.kernels.triton import dense, gemv
from qlocal.kernels.triton.gemm import gemm
from qlocal.kernels.triton.gemm_int8 import Int8Tokens, gemm_int8, round_tokens
from qlocal.kernels.triton.layout import PackedWeight


def products(x: Tensor, weights: Sequence[PreparedWeight]) -> Tensor:
    """Return (S, T, sum of N) f32, contiguous, whose sum over S are the products of x with every weight.

    x: (T, K) on the weights' device, of the type that they are multiplied with."""
    x = x.contiguous()
    if len(x) > gemv.MAX_TOKENS:
        rounded: dict[tuple[int, int], Int8Tokens] = {}
        parts = [_large_product(x, weight, rounded) for weight in weights]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))[None]
    splits = max(_splits(weight, len(x)) for weight in weights)
    width = sum(weight.shape[0] for weight in weights)
    sums = torch.empty((splits, len(x), width), dtype=torch.float32, device=x.device)
    first = 0
    for weight in weights:
        last = first + weight.shape[0]
        _small_product(x, weight, sums[:, :, first:last])
        first = last
    return sums


def _splits(weight: PreparedWeight, num_tokens: int) -> int:
    if weight.packed is not None:
        return gemv.splits_for(weight.packed, num_tokens)
    return 1 if weight.dense is None else dense.splits_for(weight.dense, num_tokens)


def _small_product(x: Tensor, weight: PreparedWeight, sums: Tensor) -> None:
    if weight.packed is not None:
        order = weight.packed.column_order
        gemv.gemv_into(x if order is None else x[:, order], weight.packed, sums)
    elif weight.dense is not None:
        dense.dense_into(x, weight.dense, sums)
    else:
        assert weight.weight is not None, "a weight on a card is packed, dense or the reference's"
        sums[0] = reference.quant_matmul(x.float(), weight.weight)
        sums[1:] = 0.0


def _large_product(x: Tensor, weight: PreparedWeight, rounded: dict[tuple[int, int], Int8Tokens]) -> Tensor:
    """Return (T, N) f32. rounded: x in 8 bits by the columns of a group and of a chunk, where its columns stand in
    order; added to."""
    if weight.packed is not None and weight.is_int8:
        return gemm_int8(_rounded(x, weight.packed, rounded), weight.packed)
    if weight.packed is not None:
        order = weight.packed.column_order
        return gemm(x if order is None else x[:, order], weight.packed)
    if weight.dense is None:
        assert weight.weight is not None, "a weight on a card is packed, dense or the reference's"
        return reference.quant_matmul(x.float(), weight.weight)
    values = weight.dense.to(x.dtype)
    if x.device.type == "cuda" and x.dtype != torch.float32:
        return torch.mm(x, values.T, out_dtype=torch.float32)
    return torch.mm(x.float(), values.float().T)


def _rounded(x: Tensor, weight: PackedWeight, rounded: dict[tuple[int, int], Int8Tokens]) -> Int8Tokens:
    """Round tokens as a weight needs them, once for all that need the same."""
    if weight.column_order is not None:
        return round_tokens(x[:, weight.column_order], weight)
    key = weight.group_size, weight.kind.chunk
    if key not in rounded:
        rounded[key] = round_tokens(x, weight)
    return rounded[key]
