"""Keys and values of the cache inside a kernel, in float16: read from 16, 8 or 4 bits, still rotated and scaled.

The cache's layout is that of `cache/storage.py`. Where two values share a byte, a head is read as two halves, which are
multiplied one after the other: of every 32 values the first 16, then the others."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

from qlocal.kernels.triton.kv_encode import BEND


@triton.jit
def half_places(SIZE: tl.constexpr, HALF: tl.constexpr):
    """Return which values of a head (SIZE,) are read as its half 0 or 1, (SIZE / 2,)."""
    places = tl.arange(0, SIZE // 2)
    return places // 16 * 32 + places % 16 + HALF * 16


@triton.jit
def load_keys(codes_ptr, halves_ptr, tokens, TYPE: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr):
    """Load keys of a head's block, tokens (N,) in it: of f16 and q8 (SIZE, N), of q4 both nibbles, (SIZE / 2, N)
    float16 each; else the second is the first."""
    tile = tokens // TILE
    lane = tokens % TILE
    if TYPE == "f16":
        places = tl.arange(0, SIZE)
        first = tl.load(halves_ptr + (tile * (SIZE * TILE) + lane)[None, :] + places[:, None] * TILE)
        second = first
    else:
        GROUPS: tl.constexpr = SIZE // 32
        ROWS: tl.constexpr = 32 if TYPE == "q8" else 16
        TILE_BYTES: tl.constexpr = TILE * GROUPS * (ROWS + 2)
        groups = tl.arange(0, GROUPS)[:, None, None]
        rows = tl.arange(0, ROWS)[None, :, None]
        base = (tile * TILE_BYTES + lane)[None, None, :]
        codes = tl.load(codes_ptr + base + 2 * GROUPS * TILE + (groups * ROWS + rows) * TILE)
        if TYPE == "q8":
            scales = tl.load(halves_ptr + (tile * (TILE_BYTES // 2) + lane)[None, None, :] + groups * TILE)
            first = tl.reshape(_signed(codes) * scales, (SIZE, codes.shape[2]))
            second = first
        else:
            lower = _from_byte(tl.load(codes_ptr + base + groups * (2 * TILE)))
            upper = _from_byte(tl.load(codes_ptr + base + groups * (2 * TILE) + TILE))
            first = tl.reshape(_level(codes & 15, lower), (SIZE // 2, codes.shape[2]))
            second = tl.reshape(_level(codes >> 4, upper), (SIZE // 2, codes.shape[2]))
    return first, second


@triton.jit
def load_values(codes_ptr, halves_ptr, tokens, mask, TYPE: tl.constexpr, SIZE: tl.constexpr):
    """Load values of a head's block like keys: (N, SIZE), or twice (N, SIZE / 2), float16; zeros outside of `mask`,
    for a weight of zero does not undo what is no number."""
    if TYPE == "f16":
        places = tl.arange(0, SIZE)
        first = tl.load(halves_ptr + tokens[:, None] * SIZE + places[None, :], mask=mask[:, None], other=0.0)
        second = first
    else:
        GROUPS: tl.constexpr = SIZE // 32
        ROWS: tl.constexpr = 32 if TYPE == "q8" else 16
        TOKEN_BYTES: tl.constexpr = GROUPS * (ROWS + 2)
        groups = tl.arange(0, GROUPS)[None, :, None]
        rows = tl.arange(0, ROWS)[None, None, :]
        base = (tokens * TOKEN_BYTES)[:, None, None]
        codes = tl.load(codes_ptr + base + 2 * GROUPS + groups * ROWS + rows)
        if TYPE == "q8":
            scales = tl.load(
                halves_ptr + (tokens * (TOKEN_BYTES // 2))[:, None, None] + groups, mask=mask[:, None, None], other=0.0
            )
            first = tl.reshape(_signed(codes) * scales, (codes.shape[0], SIZE))
            second = first
        else:
            lower = _from_byte(tl.load(codes_ptr + base + groups * 2, mask=mask[:, None, None], other=0))
            upper = _from_byte(tl.load(codes_ptr + base + groups * 2 + 1, mask=mask[:, None, None], other=0))
            first = tl.reshape(_level(codes & 15, lower), (codes.shape[0], SIZE // 2))
            second = tl.reshape(_level(codes >> 4, upper), (codes.shape[0], SIZE // 2))
    return first, second


@triton.jit
def _signed(codes):
    """Return bytes of two's complement as float16. Set into the mantissa of 1024, an integer needs no conversion."""
    mantissa = (codes.to(tl.int16) ^ 0x80) | 0x6400
    return mantissa.to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def _level(codes, scales):
    """Return the values of 4-bit codes, float16."""
    step = (codes.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0 - 7.5
    return step * (step * step * (scales * BEND) + scales)


@triton.jit
def _from_byte(scales):
    """Return 8-bit scales, the upper half of a positive float16."""
    return (scales.to(tl.int16) << 7).to(tl.float16, bitcast=True)
