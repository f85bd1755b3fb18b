"""Many tokens times a packed weight on int8 tensor cores, which GeForce cards do not halve.

Tokens are rounded to 8 bits with a scale for each group of columns that share one in the weight; codes stay as they
are. Inside a group everything is whole numbers, so rounding the tokens is all that is lost. What a zero point or a min
takes off is that much of the sum of the tokens of a group, which comes with them.
"""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.triton import tuning
from qlocal.kernels.triton.decode import COMPILER_OPTIONS, kind_constants, load_high, load_scale, load_words
from qlocal.kernels.triton.gemm import GemmConfig, tile_ids, tile_tokens
from qlocal.kernels.triton.layout import Kind, PackedWeight

_DEFAULTS = {
    32: GemmConfig(block_m=32, block_n=64, num_warps=4, num_stages=3),
    64: GemmConfig(block_m=64, block_n=64, num_warps=4, num_stages=3),
    128: GemmConfig(block_m=64, block_n=128, num_warps=8, num_stages=2),
}
_COLUMNS_OF_PROGRAM = 1024


@dataclass(frozen=True, eq=False)
class Int8Tokens:
    """Tokens (M, K) in 8 bits. codes: (M, chunks * columns of one) int8, of every 32 columns first 0 and 16, then 1 and
    17 and so on, as the kernel joins two planes of a weight; scales, sums: (groups, M) f32, and of the rounded tokens
    the sum over a group."""

    codes: Tensor
    scales: Tensor
    sums: Tensor


def config_for(num_tokens: int, kind: Kind, device: torch.device | None = None) -> GemmConfig:
    """Return what was measured on a card, or else an estimate within 99 KiB of shared memory."""
    tile = tile_tokens(num_tokens)
    # Two levels of scales and mins leave no registers for the largest tile on sm_120.
    tile = min(tile, 64) if kind.has_shift else tile
    return replace(_DEFAULTS[tile], **tuning.measured("gemm_int8", tile, device))


@triton.jit(do_not_specialize=["M", "num_groups"])
def round_tokens_kernel(
    x_ptr, codes_ptr, scales_ptr, sums_ptr, M, K, num_groups, GROUP_SIZE: tl.constexpr, GROUPS: tl.constexpr
):  # fmt: skip
    """x (M, K), any float; codes (M, num_groups * GROUP_SIZE) int8; scales and sums (num_groups, M) float32; all
    contiguous. Grid: (M, ceil(num_groups / GROUPS))."""
    token = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    places = tl.arange(0, GROUP_SIZE)
    columns = groups[:, None] * GROUP_SIZE + (places // 32 * 32 + places % 2 * 16 + places % 32 // 2)[None, :]
    x = tl.load(x_ptr + token * K + columns, mask=columns < K, other=0.0).to(tl.float32)
    most = tl.max(tl.abs(x), axis=1)
    inverse = 127.0 / tl.maximum(most, 1e-30)  # a group of zeros stays one
    rounded = tl.floor(x * inverse[:, None] + 0.5)
    scale = most / 127.0
    inside = groups < num_groups
    address = codes_ptr + token * num_groups * GROUP_SIZE + groups[:, None] * GROUP_SIZE + places[None, :]
    tl.store(address, rounded.to(tl.int8), mask=inside[:, None])
    tl.store(scales_ptr + groups.to(tl.int64) * M + token, scale, mask=inside)
    tl.store(sums_ptr + groups.to(tl.int64) * M + token, tl.sum(rounded, axis=1) * scale, mask=inside)


@triton.jit(do_not_specialize=["M", "num_chunks"])
def gemm_int8_kernel(
    x_ptr,
    x_scales_ptr,
    x_sums_ptr,
    codes_ptr,
    high_ptr,
    scales_ptr,
    fields_ptr,
    out_ptr,
    M,
    N,
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
    """Tokens as of Int8Tokens; a packed weight (N, K); out (M, N) float32; all contiguous.

    Grid: (ceil(M / BLOCK_M) * ceil(N / BLOCK_N),). Transposed like `gemm_kernel`, for the same reason."""
    tile_m, tile_n = tile_ids(M, N, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < N
    tokens = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    token_mask = tokens < M
    places = tl.arange(0, 32)
    GROUPS: tl.constexpr = CHUNK // GROUP_SIZE
    PAIRS: tl.constexpr = GROUP_SIZE // 32
    row_length = num_chunks * CHUNK
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for chunk in tl.range(0, num_chunks, num_stages=NUM_STAGES):
        words = load_words(codes_ptr, chunk, rows, row_mask, N)
        high = load_high(high_ptr, chunk, rows, row_mask, N)
        for group in tl.static_range(GROUPS):
            scale, zero, shift = load_scale(scales_ptr, fields_ptr, chunk, rows, row_mask, N, group, KIND, GROUP_SIZE)
            sums = tl.zeros((BLOCK_N, BLOCK_M), tl.int32)
            for i in tl.static_range(PAIRS):
                codes = _plane_pair(words, high, group * PAIRS + i, KIND)
                columns = chunk * CHUNK + (group * PAIRS + i) * 32 + places
                address = x_ptr + tokens.to(tl.int64)[None, :] * row_length + columns[:, None]
                x = tl.load(address, mask=token_mask[None, :], other=0)
                sums = tl.dot(codes, x, sums, out_dtype=tl.int32)
            at = (chunk * GROUPS + group) * M + tokens
            x_scale = tl.load(x_scales_ptr + at, mask=token_mask, other=0.0)
            x_sum = tl.load(x_sums_ptr + at, mask=token_mask, other=0.0)
            # Of q8_0 the codes are signed here, and nothing is taken off.
            taken_off = shift if KIND == "q8_0" else zero * scale + shift
            acc += sums.to(tl.float32) * (scale[:, None] * x_scale[None, :]) - taken_off[:, None] * x_sum[None, :]
    address = out_ptr + tokens.to(tl.int64)[None, :] * N + rows[:, None]
    tl.store(address, acc, mask=row_mask[:, None] & token_mask[None, :])


@triton.jit
def _plane_pair(words, high, PAIR: tl.constexpr, KIND: tl.constexpr):
    """Return the codes of planes 2 PAIR and 2 PAIR + 1, side by side: (BLOCK_N, 32) int8."""
    both = tl.join(_plane(words, high, 2 * PAIR, KIND), _plane(words, high, 2 * PAIR + 1, KIND))
    return both.reshape(words.shape[0], 32)


@triton.jit
def _plane(words, high, PLANE: tl.constexpr, KIND: tl.constexpr):
    if KIND == "q8_0":
        codes = (words >> (PLANE * 8)) ^ 128
    else:
        codes = (words >> (PLANE * 4)) & 15
        if KIND == "q5_k":
            codes |= ((high >> PLANE) & 1) << 4
    return codes.to(tl.int8)


def round_tokens(x: Tensor, weight: PackedWeight) -> Int8Tokens:
    """Round tokens (M, K), in the weight's column order, to 8 bits, a scale for each of the weight's groups."""
    num_tokens, columns = x.shape
    assert x.is_contiguous() and columns == weight.shape[1], f"activations {tuple(x.shape)} for {weight.shape[1]}"
    padded = len(weight.codes) * weight.kind.chunk
    num_groups = padded // weight.group_size
    groups = _COLUMNS_OF_PROGRAM // weight.group_size
    codes = torch.empty((num_tokens, padded), dtype=torch.int8, device=x.device)
    scales, sums = (torch.empty((num_groups, num_tokens), device=x.device) for _ in range(2))
    round_tokens_kernel[(num_tokens, triton.cdiv(num_groups, groups))](
        x, codes, scales, sums, num_tokens, columns, num_groups,
        GROUP_SIZE=weight.group_size, GROUPS=groups, num_warps=4, **COMPILER_OPTIONS,
    )  # fmt: skip
    return Int8Tokens(codes, scales, sums)


def gemm_int8(x: Int8Tokens, weight: PackedWeight) -> Tensor:
    """Multiply rounded activations by a packed weight that `can_be_int8`. x: (M, K), rounded for weights with its
    groups. Returns (M, N) float32; sums are int32 in a group, float32 beyond."""
    num_tokens, num_rows = len(x.codes), weight.shape[0]
    columns, group_size = len(weight.codes) * weight.kind.chunk, x.codes.shape[1] // len(x.scales)
    assert x.codes.shape[1] == columns and group_size == weight.group_size, "tokens are rounded for another weight"
    config = config_for(num_tokens, weight.kind, x.codes.device)
    out = torch.empty((num_tokens, num_rows), dtype=torch.float32, device=x.codes.device)
    grid = (triton.cdiv(num_tokens, config.block_m) * triton.cdiv(num_rows, config.block_n),)
    gemm_int8_kernel[grid](
        x.codes, x.scales, x.sums, weight.codes, weight.high, weight.scales, weight.fields, out,
        num_tokens, num_rows, len(weight.codes),
        **kind_constants(weight.kind, weight.group_size), **config.constants(),
        num_warps=config.num_warps, **COMPILER_OPTIONS,
    )  # fmt: skip
    return out
