"""Attention of a few tokens over the cache: the keys of a sequence are shared out among programs, then joined.

The query heads of a KV head, and the tokens of a piece, are the rows of one tile, so every key is read once. Which keys
there are is read on the card, so that one recorded launch serves every context."""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.native_step import Cache
from qlocal.kernels.triton import tuning
from qlocal.kernels.triton.decode import COMPILER_OPTIONS
from qlocal.kernels.triton.gemv import num_processors
from qlocal.kernels.triton.hadamard import rotate
from qlocal.kernels.triton.kv_decode import half_places, load_keys, load_values
from qlocal.kernels.triton.rotary_store import Heads, Queries, cache_constants

_MAX_PIECE = 8
KEY_BLOCK, BIASED_KEY_BLOCK = 64, 32
"""Keys that a program reads at a time, and with a bias, whose angles need registers; less where a block of the cache
holds less."""
_MAX_SPLITS = 64
_MIN_ROWS = 16  # of a tensor-core instruction
_MAX_ROWS, _MAX_BIASED_ROWS = 64, 32  # more would not stay in registers


@dataclass(frozen=True)
class AttendConfig:
    """How the kernel is compiled. rows: of a tile, block_n: keys of one. num_stages: tiles on their way at a time.
    programs: for every multiprocessor of the card."""

    rows: int
    block_n: int
    num_warps: int
    num_stages: int
    programs: int = 2

    def constants(self) -> dict[str, int]:
        """Return the keyword arguments of the kernel."""
        return {"ROWS": self.rows, "N": self.block_n, "NUM_STAGES": self.num_stages}


def config_for(
    group: int, longest: int, block_size: int, has_bias: bool, device: torch.device | None = None
) -> AttendConfig:
    """Return what was measured on a card, or else an estimate: for `group` query heads a KV head, and pieces of up to
    `longest` tokens."""
    rows = max(_MIN_ROWS, triton.next_power_of_2(group * triton.next_power_of_2(longest)))
    default = AttendConfig(rows, key_block(block_size, has_bias), num_warps=4 if rows < 64 else 8, num_stages=2)
    return replace(default, **tuning.measured("attend", rows, device))


@dataclass(frozen=True, eq=False)
class Pieces:
    """The tokens of a step, in pieces of at most `longest_piece` of one sequence.

    extents: (pieces, 3) int32, the first row in the step, tokens, and tokens of the sequence before them. tables:
    (pieces, blocks) int32. rows: (T,) int32, the piece of every token. longest: tokens of the longest piece."""

    extents: Tensor
    tables: Tensor
    rows: Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class KeyAngles:
    """What the angles of all positions are added from, for keys whose bias is kept out.

    of_tiles: (tiles, Dh) f32, cosines and then sines of the first of every N = `key_block` positions. of_lanes:
    (2, Dh, N) f16, the same of the first N positions, as the nearest float16 and what that misses."""

    of_tiles: Tensor
    of_lanes: Tensor


@triton.jit
def _scores(rows, keys, scale, IS_SPLIT: tl.constexpr):
    """Multiply rows (R, K) float32 by keys (K, N) float16, rows in parts of scale (R,): exactly enough where the
    rows are split into two float16."""
    scaled = rows / scale[:, None]
    nearest = scaled.to(tl.float16)
    scores = tl.dot(nearest, keys)
    if IS_SPLIT:
        scores += tl.dot((scaled - nearest.to(tl.float32)).to(tl.float16), keys)
    return scores * scale[:, None]


@triton.jit
def _bias_scores(of_cos, of_sin, tile_ptr, lanes_ptr, LANES: tl.constexpr, scale, HALF: tl.constexpr, N: tl.constexpr):
    """What the bias of keys adds to the scores (R, N): the angle of a position is its tile's plus its lane's."""
    pairs = tl.arange(0, HALF)
    cos = tl.load(tile_ptr + pairs)[None, :]
    sin = tl.load(tile_ptr + HALF + pairs)[None, :]
    at = lanes_ptr + pairs[:, None] * N + tl.arange(0, N)[None, :]
    scores = _scores(of_cos * cos + of_sin * sin, tl.load(at), scale, True)
    scores += _scores(of_cos * cos + of_sin * sin, tl.load(at + LANES), scale, False)
    scores += _scores(of_sin * cos - of_cos * sin, tl.load(at + HALF * N), scale, True)
    scores += _scores(of_sin * cos - of_cos * sin, tl.load(at + HALF * N + LANES), scale, False)
    return scores


@triton.jit
def _row_scale(rows):
    """Return the largest size in every row (R, K), or 1 where all are zero."""
    largest = tl.max(tl.abs(rows), axis=1)
    return tl.where(largest == 0.0, 1.0, largest)


@triton.jit(do_not_specialize=["table_stride", "T"])
def attend_kernel(
    queries_ptr, query_bias_ptr, keys_ptr, key_halves_ptr, values_ptr, value_halves_ptr,
    tile_angles_ptr, lane_angles_ptr, extents_ptr, tables_ptr, sums_ptr, most_ptr, weight_ptr,
    table_stride, T, scale,
    H: tl.constexpr, HK: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr,
    KEY_TYPE: tl.constexpr, VALUE_TYPE: tl.constexpr, KEY_BYTES: tl.constexpr, VALUE_BYTES: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """queries, query_bias (T, H, DH) float32; keys and values as bytes and as float16; angles: see KeyAngles; extents,
    tables: see Pieces. sums (SPLITS, T, H, DH), most, weight (SPLITS, T, H) float32: weighted sums of values, the
    largest score in powers of two, and the sum of weights; splits without keys write nothing.

    Grid: (pieces, HK, SPLITS). Tokens of a piece times H / HK heads are at most ROWS; BLOCK is a multiple of N."""
    piece, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(extents_ptr + piece * 3)
    length = tl.load(extents_ptr + piece * 3 + 1)
    past = tl.load(extents_ptr + piece * 3 + 2)
    num_tiles = tl.cdiv(past + length, N)
    share = tl.cdiv(num_tiles, SPLITS)
    first = split * share
    last = tl.minimum(first + share, num_tiles)
    if first < last:
        GROUP: tl.constexpr = H // HK
        IS_Q4: tl.constexpr = KEY_TYPE == "q4"
        HAS_BIAS: tl.constexpr = query_bias_ptr is not None
        V_SIZE: tl.constexpr = DH // 2 if VALUE_TYPE == "q4" else DH
        HALF: tl.constexpr = DH // 2
        rows = tl.arange(0, ROWS)
        token = rows // GROUP
        mask = token < length
        head = ((first_row + token) * H + kv_head * GROUP + rows % GROUP).to(tl.int64)
        query_at = queries_ptr + head[:, None] * DH
        if IS_Q4:
            query = tl.load(query_at + half_places(DH, 0)[None, :], mask=mask[:, None], other=0.0)
            upper_query = tl.load(query_at + half_places(DH, 1)[None, :], mask=mask[:, None], other=0.0)
            upper_scale = _row_scale(upper_query)
        else:
            query = tl.load(query_at + tl.arange(0, DH)[None, :], mask=mask[:, None], other=0.0)
        query_scale = _row_scale(query)
        if HAS_BIAS:
            bias_at = query_bias_ptr + head[:, None] * DH + tl.arange(0, HALF)[None, :]
            of_cos = tl.load(bias_at, mask=mask[:, None], other=0.0)
            of_sin = tl.load(bias_at + HALF, mask=mask[:, None], other=0.0)
            # A rotated pair is at most 1.42 times the larger of the two.
            bias_scale = 1.5 * tl.maximum(_row_scale(of_cos), _row_scale(of_sin))
        most = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        sums = tl.zeros((ROWS, V_SIZE), tl.float32)
        upper_sums = tl.zeros((ROWS, V_SIZE), tl.float32)
        for tile in tl.range(first, last, num_stages=NUM_STAGES):
            start = tile * N
            block = tl.load(tables_ptr + piece * table_stride + start // BLOCK).to(tl.int64) * HK + kv_head
            tokens = start % BLOCK + tl.arange(0, N)
            key_start = block * (BLOCK * KEY_BYTES)
            key, upper_key = load_keys(
                keys_ptr + key_start, key_halves_ptr + key_start // 2, tokens, KEY_TYPE, DH, TILE
            )
            # Keys in 16 bits may have a bias, beside which a rounded query would lose the rest.
            scores = _scores(query, key, query_scale, KEY_TYPE == "f16")
            if IS_Q4:
                scores += _scores(upper_query, upper_key, upper_scale, False)
            if HAS_BIAS:
                tile_at = tile_angles_ptr + tile * DH
                scores += _bias_scores(of_cos, of_sin, tile_at, lane_angles_ptr, DH * N, bias_scale, HALF, N)
            is_seen = (start + tl.arange(0, N))[None, :] <= (past + token)[:, None]
            scores = tl.where(is_seen, scores * scale, float("-inf"))
            now_most = tl.maximum(most, tl.max(scores, axis=1))
            shift = tl.where(now_most == float("-inf"), 0.0, now_most)
            weights = tl.exp2(scores - shift[:, None])
            fading = tl.exp2(most - shift)
            weight = weight * fading + tl.sum(weights, axis=1)
            most = now_most
            value_start = block * (BLOCK * VALUE_BYTES)
            is_there = start + tl.arange(0, N) < past + length
            value, upper_value = load_values(
                values_ptr + value_start, value_halves_ptr + value_start // 2, tokens, is_there, VALUE_TYPE, DH
            )
            sums = tl.dot(weights.to(tl.float16), value, sums * fading[:, None])
            if VALUE_TYPE == "q4":
                upper_sums = tl.dot(weights.to(tl.float16), upper_value, upper_sums * fading[:, None])
        out = split.to(tl.int64) * T * H + head
        tl.store(most_ptr + out, most, mask=mask)
        tl.store(weight_ptr + out, weight, mask=mask)
        if VALUE_TYPE == "q4":
            tl.store(sums_ptr + out[:, None] * DH + half_places(DH, 0)[None, :], sums, mask=mask[:, None])
            tl.store(sums_ptr + out[:, None] * DH + half_places(DH, 1)[None, :], upper_sums, mask=mask[:, None])
        else:
            tl.store(sums_ptr + out[:, None] * DH + tl.arange(0, DH)[None, :], sums, mask=mask[:, None])


@triton.jit(do_not_specialize=["T"])
def join_kernel(
    sums_ptr, most_ptr, weight_ptr, value_scale_ptr, value_mean_ptr, extents_ptr, piece_of_row_ptr, out_ptr, T,
    H: tl.constexpr, HK: tl.constexpr, DH: tl.constexpr, LOG: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join what the splits of `attend_kernel` wrote; out (T, H, DH), any float. value_scale, value_mean (HK, DH)
    float32, or None where values are as they were. Grid: (T, H)."""
    token, head = tl.program_id(0), tl.program_id(1)
    piece = tl.load(piece_of_row_ptr + token)
    num_tiles = tl.cdiv(tl.load(extents_ptr + piece * 3 + 2) + tl.load(extents_ptr + piece * 3 + 1), N)
    used = tl.cdiv(num_tiles, tl.cdiv(num_tiles, SPLITS))
    places = tl.arange(0, DH)
    row = token.to(tl.int64) * H + head
    splits = tl.arange(0, SPLITS)
    mosts = tl.load(most_ptr + splits.to(tl.int64) * T * H + row, mask=splits < used, other=float("-inf"))
    most = tl.max(mosts, axis=0)
    total = tl.zeros((DH,), tl.float32)
    weight = tl.full((), 0.0, tl.float32)
    for split in range(used):
        at = split * T * H + row
        fading = tl.exp2(tl.load(most_ptr + at) - most)
        weight += fading * tl.load(weight_ptr + at)
        total += fading * tl.load(sums_ptr + at * DH + places)
    total = total / weight
    if value_scale_ptr is not None:
        kv_place = head // (H // HK) * DH + places
        total = rotate(total, DH, LOG) / tl.load(value_scale_ptr + kv_place) + tl.load(value_mean_ptr + kv_place)
    tl.store(out_ptr + row * DH + places, total.to(out_ptr.dtype.element_ty))


def attend(
    queries: Queries, cache: Cache, pieces: Pieces, angles: KeyAngles | None, heads: Heads, dtype: torch.dtype,
    splits: int | None = None,
) -> Tensor:  # fmt: skip
    """Attend from a few tokens to all keys of their sequences up to their own, which are in the cache already.

    angles: for a cache with a key bias. splits: a power of two, by default what fills the card. Returns
    (T, H * Dh) of `dtype`."""
    tokens, device = len(queries.values), queries.values.device
    num_pieces = len(pieces.extents)
    config = config_for(
        heads.num_heads // heads.num_kv_heads, pieces.longest, heads.block_size, angles is not None, device
    )
    if splits is None:
        splits = choose_splits(num_pieces * heads.num_kv_heads, num_processors(device) * config.programs)
    shape = (splits, tokens, heads.num_heads)
    sums = torch.empty((*shape, heads.head_dim), dtype=torch.float32, device=device)
    most, weight = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    attend_kernel[(num_pieces, heads.num_kv_heads, splits)](
        queries.values, queries.bias, cache.keys, cache.keys.view(torch.float16),
        cache.values, cache.values.view(torch.float16),
        None if angles is None else angles.of_tiles, None if angles is None else angles.of_lanes,
        pieces.extents, pieces.tables, sums, most, weight,
        pieces.tables.stride(0), tokens, heads.head_dim**-0.5 * math.log2(math.e),
        **heads.constants(), **cache_constants(cache.key_type, cache.value_type, heads), **config.constants(),
        SPLITS=splits, num_warps=config.num_warps, **COMPILER_OPTIONS,
    )  # fmt: skip
    out = torch.empty((tokens, heads.num_heads * heads.head_dim), dtype=dtype, device=device)
    join_kernel[(tokens, heads.num_heads)](
        sums, most, weight, cache.value_scale, cache.value_mean, pieces.extents, pieces.rows, out, tokens,
        H=heads.num_heads, HK=heads.num_kv_heads, DH=heads.head_dim, LOG=heads.head_dim.bit_length() - 1,
        N=config.block_n, SPLITS=splits, num_warps=1, **COMPILER_OPTIONS,
    )  # fmt: skip
    return out


def longest_piece(group: int, has_bias: bool) -> int:
    """Return how many tokens of one sequence are the rows of one tile; a longer run is several pieces."""
    tokens: int = (_MAX_BIASED_ROWS if has_bias else _MAX_ROWS) // triton.next_power_of_2(group)
    return max(1, min(_MAX_PIECE, tokens))


def key_block(block_size: int, has_bias: bool) -> int:
    """Return how many keys a program reads at a time."""
    return min(BIASED_KEY_BLOCK if has_bias else KEY_BLOCK, block_size)


def choose_splits(num_tiles: int, num_programs: int) -> int:
    """Into how many parts to split the keys so that tiles of rows are so many programs: a power of two."""
    wanted = -(-num_programs // num_tiles)
    splits: int = triton.next_power_of_2(wanted)
    return min(_MAX_SPLITS, splits)
