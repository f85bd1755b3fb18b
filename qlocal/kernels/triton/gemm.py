"""Many tokens times a packed weight: a tiled product on tensor cores, the weight decoded in the tile."""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.triton import tuning
from qlocal.kernels.triton.decode import (
    COMPILER_OPTIONS,
    decode_plane,
    dot,
    kind_constants,
    load_activations,
    load_high,
    load_scale,
    load_words,
)
from qlocal.kernels.triton.layout import PackedWeight


@dataclass(frozen=True)
class GemmConfig:
    """How the kernel is compiled. block_m: tokens, block_n: rows of a program. num_stages: chunks on their way.

    group_m: tiles of tokens that run side by side on one tile of rows, so that they share it in the L2 cache."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    group_m: int = 8

    def constants(self) -> dict[str, int]:
        """Return the keyword arguments of the kernel."""
        sizes = {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n}
        return {**sizes, "NUM_STAGES": self.num_stages, "GROUP_M": self.group_m}


_DEFAULTS = {
    32: GemmConfig(block_m=32, block_n=64, num_warps=4, num_stages=3),
    64: GemmConfig(block_m=64, block_n=64, num_warps=4, num_stages=3),
    128: GemmConfig(block_m=128, block_n=128, num_warps=8, num_stages=2),
}
_OF_FLOAT32 = GemmConfig(block_m=32, block_n=32, num_warps=4, num_stages=2)


def config_for(num_tokens: int, dtype: torch.dtype, device: torch.device | None = None) -> GemmConfig:
    """Return what was measured on a card, or else an estimate within 99 KiB of shared memory."""
    if dtype == torch.float32:
        return _OF_FLOAT32
    tile = tile_tokens(num_tokens)
    return replace(_DEFAULTS[tile], **tuning.measured("gemm", tile, device))


def tile_tokens(num_tokens: int) -> int:
    """Return what so many tokens count as: 32, 64 or 128."""
    return 32 if num_tokens <= 32 else 64 if num_tokens <= 64 else 128


@triton.jit(do_not_specialize=["M", "num_chunks"])
def gemm_kernel(
    x_ptr,
    codes_ptr,
    high_ptr,
    scales_ptr,
    fields_ptr,
    out_ptr,
    M,
    N,
    K,
    num_chunks,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """x (M, K) bf16, f16 or f32; a packed weight (N, K); out (M, N) float32; all contiguous.

    Grid: (ceil(M / BLOCK_M) * ceil(N / BLOCK_N),). The tile is computed transposed, weight times tokens: the operand
    that is decoded in registers is then the one that tensor cores can take from there."""
    tile_m, tile_n = tile_ids(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < N
    tokens = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    lanes = tl.arange(0, 16)
    GROUPS: tl.constexpr = CHUNK // GROUP_SIZE
    PLANES: tl.constexpr = GROUP_SIZE // 16
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for chunk in tl.range(0, num_chunks, num_stages=NUM_STAGES):
        words = load_words(codes_ptr, chunk, rows, row_mask, N)
        high = load_high(high_ptr, chunk, rows, row_mask, N)
        for group in tl.static_range(GROUPS):
            scale, zero, shift = load_scale(scales_ptr, fields_ptr, chunk, rows, row_mask, N, group, KIND, GROUP_SIZE)
            for i in tl.static_range(PLANES):
                values = decode_plane(words, high, zero, group * PLANES + i, KIND) * scale[:, None]
                if HAS_SHIFT:
                    values -= shift[:, None]
                x = load_activations(x_ptr, chunk * CHUNK + (group * PLANES + i) * 16 + lanes, tokens, M, K)
                acc = dot(values, x, acc)
    address = out_ptr + tokens.to(tl.int64)[None, :] * N + rows[:, None]
    tl.store(address, acc, mask=row_mask[:, None] & (tokens < M)[None, :])


@triton.jit
def tile_ids(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Walk over GROUP_M tiles of tokens for every tile of rows, then over the next GROUP_M."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    programs_of_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first_m = tl.program_id(0) // programs_of_group * GROUP_M
    group_m = tl.minimum(tiles_m - first_m, GROUP_M)
    place = tl.program_id(0) % programs_of_group
    return first_m + place % group_m, place // group_m


def gemm(x: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply activations by a packed weight, whose values are rounded to the activations' type.

    x: (M, K) bf16, f16 or f32 in the weight's column order, contiguous. weight: (N, K) on the same device.
    Returns (M, N) float32; sums are float32."""
    num_tokens, (num_rows, columns) = len(x), weight.shape
    assert x.is_contiguous() and x.shape[1] == columns, f"activations {tuple(x.shape)} for {columns} columns"
    config = config_for(num_tokens, x.dtype, x.device)
    out = torch.empty((num_tokens, num_rows), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(num_tokens, config.block_m) * triton.cdiv(num_rows, config.block_n),)
    gemm_kernel[grid](
        x, weight.codes, weight.high, weight.scales, weight.fields, out,
        num_tokens, num_rows, columns, len(weight.codes),
        **kind_constants(weight.kind, weight.group_size), **config.constants(),
        num_warps=config.num_warps, **COMPILER_OPTIONS,
    )  # fmt: skip
    return out
