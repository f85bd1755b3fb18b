"""silu(gate) * up: what stands between the two products of a feed-forward block."""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.triton.decode import COMPILER_OPTIONS

BLOCK, NUM_WARPS = 512, 4


@triton.jit(do_not_specialize=["T", "num_parts"])
def silu_mul_kernel(parts_ptr, out_ptr, T, F, num_parts, BLOCK: tl.constexpr):
    """parts (num_parts, T, 2 F) float32, gate before up; out (T, F), any float; contiguous.

    Grid: (ceil(F / BLOCK), T)."""
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64)
    mask = columns < F
    gate = tl.zeros((BLOCK,), tl.float32)
    up = tl.zeros((BLOCK,), tl.float32)
    for part in range(num_parts):
        address = parts_ptr + (part * T + row) * 2 * F + columns
        gate += tl.load(address, mask=mask, other=0.0)
        up += tl.load(address + F, mask=mask, other=0.0)
    fading = tl.exp(-tl.abs(gate))
    sigmoid = tl.where(gate < 0.0, fading, 1.0) / (1.0 + fading)
    tl.store(out_ptr + row * F + columns, (gate * sigmoid * up).to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Return silu(gate) * up as (T, F) of `dtype`. parts: (S, T, 2 F) f32 whose sum over S is gate, then up."""
    num_parts, tokens, width = parts.shape
    assert parts.is_contiguous() and width % 2 == 0, f"gate and up of {tuple(parts.shape)}"
    out = torch.empty((tokens, width // 2), dtype=dtype, device=parts.device)
    silu_mul_kernel[(triton.cdiv(width // 2, BLOCK), tokens)](
        parts, out, tokens, width // 2, num_parts, BLOCK=BLOCK, num_warps=NUM_WARPS, **COMPILER_OPTIONS
    )
    return out
