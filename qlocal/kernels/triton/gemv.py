"""Up to 16 tokens times a packed weight: every weight byte is read once, and read at the speed of memory.

The columns are split among programs, so that a matrix with few rows fills the card as well. Every split writes its
sums, and those are added up without atomics, always in one order: the result is the same in every run.
"""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

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

MAX_TOKENS = 16

# The chunks that a split must have to be worth its sums. An estimate, not yet measured on a card.
_MIN_CHUNKS = 4


@dataclass(frozen=True)
class GemvConfig:
    """How a kernel is compiled. block_n: rows of a program. num_stages: chunks on their way at a time. programs: for
    every multiprocessor of the card, so that each has loads under way while others calculate."""

    block_n: int
    num_warps: int
    num_stages: int
    programs: int = 8

    def constants(self, num_tokens: int) -> dict[str, int]:
        """Return the keyword arguments of the kernel; it is compiled for 1 token, or for the width of its tiles."""
        return {"BLOCK_M": tile_tokens(num_tokens), "BLOCK_N": self.block_n, "NUM_STAGES": self.num_stages}


_DEFAULTS = {
    1: GemvConfig(block_n=64, num_warps=4, num_stages=1),
    8: GemvConfig(block_n=64, num_warps=2, num_stages=3),
    16: GemvConfig(block_n=64, num_warps=4, num_stages=3),
}


def config_for(num_tokens: int, device: torch.device | None = None) -> GemvConfig:
    """Return what was measured on a card, or else an estimate; more rows a program read the tokens less often."""
    tile = tile_tokens(num_tokens)
    return replace(_DEFAULTS[tile], **tuning.measured("gemv", tile, device))


def tile_tokens(num_tokens: int) -> int:
    """Return the width of the tiles that so many tokens are multiplied in: 1, 8 or 16."""
    return 1 if num_tokens == 1 else 8 if num_tokens <= 8 else 16


@triton.jit(do_not_specialize=["M", "num_chunks", "chunks_per_split"])
def gemv_kernel(
    x_ptr,
    codes_ptr,
    high_ptr,
    scales_ptr,
    fields_ptr,
    sums_ptr,
    M,
    N,
    K,
    num_chunks,
    chunks_per_split,
    split_stride,
    token_stride,
    KIND: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """x (M, K) bf16, f16 or f32; a packed weight (N, K), contiguous; sums (splits, M, N) float32 of any strides but the
    last; M <= BLOCK_M.

    Grid: (ceil(N / BLOCK_N), splits). BLOCK_M = 1 adds up in float32 lanes, more on tensor cores: there the codes
    are whole numbers that bfloat16 holds exactly, and scales meet the sums, so nothing of the weight is rounded."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < N
    split = tl.program_id(1)
    first = split * chunks_per_split
    last = tl.minimum(first + chunks_per_split, num_chunks)
    lanes = tl.arange(0, 16)
    tokens = tl.arange(0, BLOCK_M)
    GROUPS: tl.constexpr = CHUNK // GROUP_SIZE
    PLANES: tl.constexpr = GROUP_SIZE // 16
    acc = tl.zeros((BLOCK_N, 16 if BLOCK_M == 1 else BLOCK_M), tl.float32)
    for chunk in tl.range(first, last, num_stages=NUM_STAGES):
        words = load_words(codes_ptr, chunk, rows, row_mask, N)
        high = load_high(high_ptr, chunk, rows, row_mask, N)
        for group in tl.static_range(GROUPS):
            scale, zero, shift = load_scale(scales_ptr, fields_ptr, chunk, rows, row_mask, N, group, KIND, GROUP_SIZE)
            part = tl.zeros_like(acc)
            x_sums = tl.zeros((16, BLOCK_M), tl.float32)
            for i in tl.static_range(PLANES):
                code = decode_plane(words, high, zero, group * PLANES + i, KIND)
                x = load_activations(x_ptr, chunk * CHUNK + (group * PLANES + i) * 16 + lanes, tokens, M, K)
                if BLOCK_M == 1:
                    part += code * tl.trans(x.to(tl.float32))
                else:
                    part = dot(code, x, part)
                if HAS_SHIFT:
                    x_sums += x.to(tl.float32)
            acc += part * scale[:, None]
            if HAS_SHIFT:
                # One token: lane by lane, as `part` is. More: the lanes of `part` are added up already.
                acc -= shift[:, None] * (tl.trans(x_sums) if BLOCK_M == 1 else tl.sum(x_sums, axis=0)[None, :])
    address = sums_ptr + split.to(tl.int64) * split_stride
    if BLOCK_M == 1:
        tl.store(address + rows, tl.sum(acc, axis=1), mask=row_mask)
    else:
        tl.store(
            address + tokens[None, :] * token_stride + rows[:, None],
            acc,
            mask=row_mask[:, None] & (tokens < M)[None, :],
        )


def gemv(x: Tensor, weight: PackedWeight, splits: int | None = None) -> Tensor:
    """Multiply a few activations by a packed weight without unpacking it to memory.

    x: (M, K) bf16, f16 or f32 in the weight's column order, contiguous, M <= 16. weight: (N, K) on the same device.
    splits: parts of the columns that programs share out, by default what fills the card. Returns (M, N) float32."""
    splits = splits_for(weight, len(x)) if splits is None else splits
    sums = torch.empty((splits, len(x), weight.shape[0]), dtype=torch.float32, device=x.device)
    gemv_into(x, weight, sums)
    return sums[0] if splits == 1 else sums.sum(0)


def gemv_into(x: Tensor, weight: PackedWeight, sums: Tensor) -> None:
    """Do what `gemv` does but the last addition: sums (splits, M, N) f32, whose sum over splits is the product.

    sums may be columns of a wider tensor, so that several weights write beside each other."""
    num_tokens, (num_rows, columns) = len(x), weight.shape
    assert 1 <= num_tokens <= MAX_TOKENS, f"a GEMV is for 1 to {MAX_TOKENS} tokens, not {num_tokens}"
    assert x.is_contiguous() and x.shape[1] == columns, f"activations {tuple(x.shape)} for {columns} columns"
    assert sums.shape[1:] == (num_tokens, num_rows) and sums.stride(2) == 1, f"sums {tuple(sums.shape)}"
    config = config_for(num_tokens, x.device)
    splits, num_chunks = len(sums), len(weight.codes)
    gemv_kernel[(triton.cdiv(num_rows, config.block_n), splits)](
        x, weight.codes, weight.high, weight.scales, weight.fields, sums,
        num_tokens, num_rows, columns, num_chunks, triton.cdiv(num_chunks, splits), sums.stride(0), sums.stride(1),
        **kind_constants(weight.kind, weight.group_size), **config.constants(num_tokens),
        num_warps=config.num_warps, **COMPILER_OPTIONS,
    )  # fmt: skip


def splits_for(weight: PackedWeight, num_tokens: int) -> int:
    """Return into how many parts the columns of a weight are split; none of them is without columns."""
    device = weight.codes.device
    config, num_chunks = config_for(num_tokens, device), len(weight.codes)
    num_tiles = triton.cdiv(weight.shape[0], config.block_n)
    splits = choose_splits(num_tiles, num_chunks, num_processors(device) * config.programs)
    return -(-num_chunks // -(-num_chunks // splits))


def choose_splits(num_tiles: int, num_chunks: int, num_programs: int) -> int:
    """Into how many parts to split the columns so that `num_tiles` tiles of rows are so many programs."""
    wanted = -(-num_programs // num_tiles)
    return max(1, min(wanted, num_chunks // _MIN_CHUNKS))


@cache
def num_processors(device: torch.device) -> int:
    """Return the multiprocessors of a card."""
    # The CPU, which only the interpreter uses, counts as one.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
