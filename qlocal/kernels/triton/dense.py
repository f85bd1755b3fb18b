"""Up to 16 tokens times a weight of 16 bits, an output head above all: read once, at the speed of memory.

float16 and bfloat16 are both exact in the 19 bits that tensor cores take of a float32, so neither is rounded to meet
the other."""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.triton import tuning
from qlocal.kernels.triton.decode import COMPILER_OPTIONS
from qlocal.kernels.triton.gemv import MAX_TOKENS, choose_splits, num_processors, tile_tokens


@dataclass(frozen=True)
class DenseConfig:
    """How the kernel is compiled. block_n: rows of a program, block_k: columns that it reads at a time.
    programs: for every multiprocessor of the card."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    programs: int = 8

    def constants(self, num_tokens: int) -> dict[str, int]:
        """Return the keyword arguments of the kernel; it is compiled for 1 token, or for the width of its tiles."""
        sizes = {"BLOCK_M": tile_tokens(num_tokens), "BLOCK_N": self.block_n, "BLOCK_K": self.block_k}
        return {**sizes, "NUM_STAGES": self.num_stages}


def config_for(num_tokens: int, device: torch.device | None = None) -> DenseConfig:
    """Return what was measured on a card, or else an estimate."""
    tile = tile_tokens(num_tokens)
    default = DenseConfig(block_n=32, block_k=64, num_warps=4, num_stages=3)
    if tile == 1:
        default = DenseConfig(block_n=16, block_k=256, num_warps=4, num_stages=2)
    return replace(default, **tuning.measured("dense", tile, device))


@triton.jit(do_not_specialize=["M", "columns_per_split", "split_stride"])
def dense_kernel(
    x_ptr, w_ptr, sums_ptr, M, N, K, columns_per_split, split_stride, token_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """x (M, K) bf16, f16 or f32 and w (N, K) bf16 or f16, contiguous; sums (splits, M, N) float32 of any strides but
    the last; M <= BLOCK_M. Grid: (ceil(N / BLOCK_N), splits); columns_per_split is a multiple of BLOCK_K."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    first = split * columns_per_split
    last = tl.minimum(first + columns_per_split, K)
    tokens = tl.arange(0, BLOCK_M)
    row_mask = rows < N
    acc = tl.zeros((BLOCK_N, BLOCK_K if BLOCK_M == 1 else BLOCK_M), tl.float32)
    for start in tl.range(first, last, BLOCK_K, num_stages=NUM_STAGES):
        columns = start + tl.arange(0, BLOCK_K)
        w_at = w_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :]
        w = tl.load(w_at, mask=row_mask[:, None] & (columns < last)[None, :], other=0.0).to(tl.float32)
        if BLOCK_M == 1:
            x = tl.load(x_ptr + columns, mask=columns < last, other=0.0).to(tl.float32)
            acc += w * x[None, :]
        else:
            x_mask = (columns < last)[:, None] & (tokens < M)[None, :]
            x = tl.load(x_ptr + tokens[None, :] * K + columns[:, None], mask=x_mask, other=0.0).to(tl.float32)
            acc = tl.dot(w, x, acc, input_precision="tf32")
    address = sums_ptr + split.to(tl.int64) * split_stride
    if BLOCK_M == 1:
        tl.store(address + rows, tl.sum(acc, axis=1), mask=row_mask)
    else:
        out_mask = row_mask[:, None] & (tokens < M)[None, :]
        tl.store(address + tokens[None, :] * token_stride + rows[:, None], acc, mask=out_mask)


def dense_into(x: Tensor, weight: Tensor, sums: Tensor) -> None:
    """Multiply a few activations, as `gemv_into` does, by a dense weight.

    x: (M, K) bf16, f16 or f32, contiguous, M <= 16; of f32, 19 bits count with more than one token. weight: (N, K) bf16
    or f16, contiguous. sums: (splits, M, N) f32, whose sum over splits is the product; last stride 1."""
    num_tokens, (num_rows, columns) = len(x), weight.shape
    assert 1 <= num_tokens <= MAX_TOKENS and x.is_contiguous() and x.shape[1] == columns, f"{tuple(x.shape)}"
    assert weight.is_contiguous() and sums.shape[1:] == (num_tokens, num_rows) and sums.stride(2) == 1
    config, splits = config_for(num_tokens, x.device), len(sums)
    steps = triton.cdiv(columns, config.block_k)
    dense_kernel[(triton.cdiv(num_rows, config.block_n), splits)](
        x, weight, sums, num_tokens, num_rows, columns,
        triton.cdiv(steps, splits) * config.block_k, sums.stride(0), sums.stride(1),
        **config.constants(num_tokens), num_warps=config.num_warps, **COMPILER_OPTIONS,
    )  # fmt: skip


def splits_for(weight: Tensor, num_tokens: int) -> int:
    """Return into how many parts the columns of a weight (N, K) are split; none of them is without columns."""
    config = config_for(num_tokens, weight.device)
    steps = -(-weight.shape[1] // config.block_k)
    num_tiles = -(-weight.shape[0] // config.block_n)
    splits = choose_splits(num_tiles, steps, num_processors(weight.device) * config.programs)
    return -(-steps // -(-steps // splits))
