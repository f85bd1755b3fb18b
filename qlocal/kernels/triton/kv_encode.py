"""Rounding a rotated head to 8 or 4 bits inside a kernel, as `encode` of `cache/packed.py` does, and storing it."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

# The levels of q4, as in `cache/packed.py`: u (1 + BEND u²) for u = -7.5, -6.5, ..., 7.5.
BEND: tl.constexpr = tl.constexpr(0.007)
_LARGEST_RANGE: tl.constexpr = tl.constexpr(1.25)
_NUM_RANGES: tl.constexpr = tl.constexpr(6)
# Added and taken off again, it leaves a float32 below 2^22 rounded to the nearest even integer.
_ROUNDING: tl.constexpr = tl.constexpr(1.5 * 2**23)


@triton.jit
def store_head(x, codes_ptr, halves_ptr, TYPE: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, offset):
    """Store one head of one token, (SIZE,) float32, at place `offset` of a head's block.

    codes_ptr (uint8) and halves_ptr (float16) both point to that block, which `cache/storage.py` describes."""
    tile = offset // TILE
    lane = offset % TILE
    if TYPE == "f16":
        places = tl.arange(0, SIZE)
        tl.store(halves_ptr + tile * SIZE * TILE + places * TILE + lane, x.to(tl.float16))
    else:
        GROUPS: tl.constexpr = SIZE // 32
        ROWS: tl.constexpr = 32 if TYPE == "q8" else 16
        TILE_BYTES: tl.constexpr = TILE * GROUPS * (ROWS + 2)
        groups = tl.arange(0, GROUPS)
        places = groups[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        code_at = codes_ptr + tile * TILE_BYTES + 2 * GROUPS * TILE + places * TILE + lane
        if TYPE == "q8":
            codes, scales = _encode_8(tl.reshape(x, (GROUPS, 32)))
            tl.store(halves_ptr + tile * (TILE_BYTES // 2) + groups * TILE + lane, scales)
            tl.store(code_at, codes)
        else:
            tl.static_assert(TYPE == "q4", "a type that the cache has not")
            codes, scales = _encode_4(tl.reshape(x, (GROUPS, 2, 16)))
            halves = groups[:, None] * 2 + tl.arange(0, 2)[None, :]
            tl.store(codes_ptr + tile * TILE_BYTES + halves * TILE + lane, scales)
            tl.store(code_at, codes)


@triton.jit
def _encode_8(groups):
    """Return codes (G, 32) int8 and scales (G,) float16 of groups (G, 32) float32."""
    scales = (tl.max(tl.abs(groups), axis=1) / 127.0).to(tl.float16)
    scale = scales.to(tl.float32)
    divisor = tl.where(scale == 0.0, 1.0, scale)
    rounded = (groups / divisor[:, None] + _ROUNDING) - _ROUNDING
    codes = tl.minimum(tl.maximum(rounded, -127.0), 127.0).to(tl.int8)
    return codes.to(tl.uint8, bitcast=True), scales


@triton.jit
def _encode_4(halves):
    """Return codes (G, 16) uint8, two a byte, and scales (G, 2) uint8 of halves of groups (G, 2, 16) float32."""
    size = tl.abs(halves)
    TOP: tl.constexpr = 7.5 * (1.0 + BEND * 7.5 * 7.5)
    widest = (tl.max(size, axis=2) * (_LARGEST_RANGE / TOP)).to(tl.float16).to(tl.int16, bitcast=True) >> 7
    best_error = tl.zeros_like(size.sum(axis=2)) + float("inf")
    best_scales = tl.zeros_like(widest)
    best_steps = tl.zeros_like(size)
    for below in tl.static_range(_NUM_RANGES):
        tried = tl.maximum(widest - below, 0)
        scale = (tried << 7).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)[:, :, None]
        steps = _nearest_step(size / tl.where(scale == 0.0, 1.0, scale))
        missed = size - steps * (1.0 + BEND * steps * steps) * scale
        error = tl.sum(missed * missed, axis=2)
        better = error < best_error
        best_error = tl.where(better, error, best_error)
        best_scales = tl.where(better, tried, best_scales)
        best_steps = tl.where(better[:, :, None], steps, best_steps)
    codes = (tl.where(halves < 0.0, -best_steps, best_steps) + 7.5).to(tl.int32)
    lower, upper = tl.split(tl.permute(codes, (0, 2, 1)))
    return (lower | (upper << 4)).to(tl.uint8), best_scales.to(tl.uint8)


@triton.jit
def _nearest_step(size):
    """Return 0.5, 1.5, ... or 7.5: the step whose level is nearest to a positive value in parts of the scale."""
    steps = tl.zeros_like(size) + 0.5
    for i in tl.static_range(1, 8):
        steps += tl.where(size >= _bound(i), 1.0, 0.0)
    return steps


@triton.jit
def _bound(I: tl.constexpr):
    """Return what lies half way between the levels of steps I - 0.5 and I + 0.5."""
    LOWER: tl.constexpr = (I - 0.5) * (1.0 + BEND * (I - 0.5) * (I - 0.5))
    UPPER: tl.constexpr = (I + 0.5) * (1.0 + BEND * (I + 0.5) * (I + 0.5))
    return (LOWER + UPPER) / 2
