"""Residual sum and RMS norm: what a product gives goes to the residual stream, and its norm to the next product."""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.triton.decode import COMPILER_OPTIONS

_VALUES_PER_THREAD = 16


@triton.jit(do_not_specialize=["T", "num_parts"])
def add_norm_kernel(
    stream_ptr, parts_ptr, weight_ptr, out_ptr, T, D, num_parts, eps,
    BLOCK_D: tl.constexpr, HAS_PARTS: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """stream (T, D) float32, added to in place; parts (num_parts, T, D) float32, added up first; weight (D,) float32;
    out (T, D), any float; all contiguous. Grid: (T,): a program holds a whole row, BLOCK_D >= D."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    mask = columns < D
    x = tl.load(stream_ptr + row * D + columns, mask=mask, other=0.0)
    if HAS_PARTS:
        total = tl.zeros((BLOCK_D,), tl.float32)
        for part in range(num_parts):
            total += tl.load(parts_ptr + (part * T + row) * D + columns, mask=mask, other=0.0)
        x += total
        tl.store(stream_ptr + row * D + columns, x, mask=mask)
    if HAS_NORM:
        scale = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
        tl.store(out_ptr + row * D + columns, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)


def num_warps_for(width: int) -> int:
    """Return the warps of a program that holds `width` values, a power of two."""
    return max(1, min(16, width // (32 * _VALUES_PER_THREAD)))


def add_norm(
    stream: Tensor, parts: Tensor | None, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor | None:
    """Add what products gave to the residual stream, in place, and return its norm.

    stream: (T, D) f32. parts: (S, T, D) f32 whose sum over S is added, or None. weight: (D,) f32, or None where nothing
    is to be normed. Returns (T, D) of `dtype`, or None."""
    tokens, width = stream.shape
    assert stream.is_contiguous() and (parts is None or (parts.is_contiguous() and parts.shape[1:] == stream.shape))
    out = None if weight is None else torch.empty((tokens, width), dtype=dtype, device=stream.device)
    block = triton.next_power_of_2(width)
    add_norm_kernel[(tokens,)](
        stream, stream if parts is None else parts, stream if weight is None else weight,
        stream if out is None else out, tokens, width, 0 if parts is None else len(parts), eps,
        BLOCK_D=block, HAS_PARTS=parts is not None, HAS_NORM=weight is not None,
        num_warps=num_warps_for(block), **COMPILER_OPTIONS,
    )  # fmt: skip
    return out
