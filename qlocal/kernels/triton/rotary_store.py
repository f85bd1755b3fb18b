"""Queries, keys and values of a step: biases added, rotated to their positions, keys and values put into the cache."""

# The arguments of kernels are pointers, blocks and constants of the compiler, for which Python has no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlocal.kernels.native_step import KEY_TILE, Cache
from qlocal.kernels.triton.decode import COMPILER_OPTIONS
from qlocal.kernels.triton.hadamard import rotate
from qlocal.kernels.triton.kv_encode import store_head


@dataclass(frozen=True)
class Heads:
    """Query heads, KV heads, numbers of a head (a power of two, 32 or more), tokens of a block of the cache."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int

    def constants(self) -> dict[str, int]:
        """Return the keyword arguments that kernels are compiled for."""
        return {"H": self.num_heads, "HK": self.num_kv_heads, "DH": self.head_dim, "BLOCK": self.block_size}


@dataclass(frozen=True, eq=False)
class Queries:
    """Rotated queries (T, H, Dh) f32, as attention over the cache takes them. bias: of packed keys whose bias is kept
    out, what multiplies the cosines and the sines of a key's position, (T, H, Dh) f32."""

    values: Tensor
    bias: Tensor | None


def token_bytes(kind: str, head_dim: int) -> int:
    """Return the bytes of one token's key or value of one head, of type f16, q8 or q4."""
    return {"f16": 2 * head_dim, "q8": head_dim + head_dim // 16, "q4": head_dim // 2 + head_dim // 16}[kind]


@triton.jit(do_not_specialize=["num_parts"])
def rotary_store_kernel(
    parts_ptr, bias_ptr, cos_ptr, sin_ptr, slots_ptr, queries_ptr, query_bias_ptr,
    keys_ptr, key_halves_ptr, values_ptr, value_halves_ptr,
    key_bias_ptr, key_scale_ptr, value_mean_ptr, value_scale_ptr,
    num_parts, part_stride,
    H: tl.constexpr, HK: tl.constexpr, DH: tl.constexpr, BLOCK: tl.constexpr, LOG: tl.constexpr,
    KEY_TYPE: tl.constexpr, VALUE_TYPE: tl.constexpr, KEY_BYTES: tl.constexpr, VALUE_BYTES: tl.constexpr,
    TILE: tl.constexpr, IS_PLAIN: tl.constexpr,
):  # fmt: skip
    """parts: num_parts times (T, (H + 2 HK) DH) float32, part_stride apart, added up first; bias: one row, or None;
    cos, sin (T, DH / 2) float32; slots (T,) int32, block * BLOCK + place; queries, query_bias (T, H, DH) float32.
    keys, values: memory of the cache, each as bytes and as float16. key_bias and the three after it (HK, DH) float32.

    IS_PLAIN: queries are for unpacked keys. Grid: (T, H + 2 HK): one head of one token."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    places = tl.arange(0, DH)
    HALF: tl.constexpr = DH // 2
    others = (places + HALF) % DH
    KEYS_HAVE_BIAS: tl.constexpr = key_bias_ptr is None
    is_key = (head >= H) & (head < H + HK)
    x = tl.zeros((DH,), tl.float32)
    other = tl.zeros((DH,), tl.float32)
    address = parts_ptr + token * (H + 2 * HK) * DH + head * DH
    for _ in range(num_parts):
        x += tl.load(address + places)
        other += tl.load(address + others)
        address += part_stride
    if bias_ptr is not None:  # noqa: SIM102 (the compiler decides this one)
        if KEYS_HAVE_BIAS or not is_key:
            x += tl.load(bias_ptr + head * DH + places)
            other += tl.load(bias_ptr + head * DH + others)
    slot = tl.load(slots_ptr + token)
    block = (slot // BLOCK).to(tl.int64)
    offset = slot % BLOCK
    if head >= H + HK:
        kv_head = head - H - HK
        if VALUE_TYPE != "f16":
            x -= tl.load(value_mean_ptr + kv_head * DH + places)
            x = rotate(x * tl.load(value_scale_ptr + kv_head * DH + places), DH, LOG)
        start = (block * HK + kv_head) * (BLOCK * VALUE_BYTES)
        store_head(x, values_ptr + start, value_halves_ptr + start // 2, VALUE_TYPE, DH, 1, offset)
    else:
        cos = tl.load(cos_ptr + token * HALF + places % HALF)
        sin = tl.load(sin_ptr + token * HALF + places % HALF)
        sin = tl.where(places < HALF, -sin, sin)
        turned = x * cos + other * sin
        if is_key:
            kv_head = head - H
            if KEY_TYPE != "f16":
                turned = rotate(turned * tl.load(key_scale_ptr + kv_head * DH + places), DH, LOG)
            start = (block * HK + kv_head) * (BLOCK * KEY_BYTES)
            store_head(turned, keys_ptr + start, key_halves_ptr + start // 2, KEY_TYPE, DH, TILE, offset)
        else:
            kv_head = head // (H // HK)
            out = (token * H + head) * DH + places
            if KEY_TYPE != "f16" and not IS_PLAIN:
                if not KEYS_HAVE_BIAS:
                    # q R(t) b = cos(t) (q1 b1 + q2 b2) + sin(t) (q2 b1 - q1 b2), pair by pair.
                    turned_other = other * cos - x * sin
                    own = tl.load(key_bias_ptr + kv_head * DH + places)
                    opposite = tl.load(key_bias_ptr + kv_head * DH + others)
                    of_cos = turned * own + turned_other * opposite
                    of_sin = turned * opposite - turned_other * own
                    tl.store(query_bias_ptr + out, tl.where(places < HALF, of_cos, of_sin))
                turned = rotate(turned / tl.load(key_scale_ptr + kv_head * DH + places), DH, LOG)
            tl.store(queries_ptr + out, turned)


def rotary_store(
    parts: Tensor, bias: Tensor | None, angles: tuple[Tensor, Tensor], slots: Tensor, cache: Cache, heads: Heads,
    *, is_plain: bool = False,
) -> Queries:  # fmt: skip
    """Rotate queries and keys, store keys and values, and return the queries.

    parts: (S, T, (H + 2 Hk) Dh) f32, rows contiguous, whose sum over S is q, k and v. bias: one row f32, or None.
    angles: cos and sin (T, Dh / 2) f32. slots: (T,) int32, block * block_size + place in it. is_plain: return queries
    for keys as they were before packing."""
    num_parts, tokens, width = parts.shape
    assert width == (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim and parts.stride()[1:] == (width, 1)
    queries = torch.empty((tokens, heads.num_heads, heads.head_dim), dtype=torch.float32, device=parts.device)
    query_bias = None if cache.key_bias is None or is_plain else torch.empty_like(queries)
    rotary_store_kernel[(tokens, heads.num_heads + 2 * heads.num_kv_heads)](
        parts, bias, *angles, slots, queries, query_bias,
        cache.keys, cache.keys.view(torch.float16), cache.values, cache.values.view(torch.float16),
        cache.key_bias, cache.key_scale, cache.value_mean, cache.value_scale,
        num_parts, parts.stride(0),
        **heads.constants(), **cache_constants(cache.key_type, cache.value_type, heads),
        LOG=heads.head_dim.bit_length() - 1, IS_PLAIN=is_plain, num_warps=1, **COMPILER_OPTIONS,
    )  # fmt: skip
    return Queries(queries, query_bias)


def cache_constants(key_type: str, value_type: str, heads: Heads) -> dict[str, str | int]:
    """Return what kernels are compiled for on account of the cache."""
    return {
        "KEY_TYPE": key_type,
        "VALUE_TYPE": value_type,
        "KEY_BYTES": token_bytes(key_type, heads.head_dim),
        "VALUE_BYTES": token_bytes(value_type, heads.head_dim),
        "TILE": KEY_TILE,
    }
