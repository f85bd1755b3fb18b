"""Every form in which the kernels run: types of weights and caches, sizes of models, numbers of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton

from qlocal.kernels.triton import add_norm, attention, dense, exchange, gemm, gemm_int8, gemv, rotary_store, silu_mul
from qlocal.kernels.triton.compile_report import Form
from qlocal.kernels.triton.decode import kind_constants
from qlocal.kernels.triton.layout import GROUP_SIZES, Kind

# One number of tokens for every configuration there is.
_GEMV_TOKENS = (1, 8, 16)
_GEMM_TOKENS = (32, 64, 512)
_KV_TYPES = (("f16", "f16"), ("q8", "q8"), ("q8", "q4"), ("q4", "q4"))
# Query heads, KV heads, numbers of a head: the 72B, the 0.5B, and Llama's and Mixtral's four to one.
_HEADS = ((64, 8, 128), (14, 2, 64), (32, 8, 128))
_WIDTHS = (8192, 896)
_BLOCK_SIZE = 256

_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


def product_forms() -> Iterator[Form]:
    """Yield every kind of weight for every configuration, and what is special once: bf16 scales, float32 tokens."""
    weights = [(Kind.AFFINE, group_size) for group_size in GROUP_SIZES]
    weights += [(kind, 16 if kind is Kind.Q6_K else 32) for kind in Kind if kind is not Kind.AFFINE]
    for name, counts in (("gemv", _GEMV_TOKENS), ("gemm", _GEMM_TOKENS)):
        for kind, group_size in weights:
            for num_tokens in counts:
                yield _product(name, kind, group_size, num_tokens)
        yield _product(name, Kind.AFFINE, 128, counts[-1], scales=torch.bfloat16)
        yield _product(name, Kind.AFFINE, 128, counts[-1], x=torch.float32)


def int8_forms() -> Iterator[Form]:
    """Yield the products of prompts in 8 bits, and what rounds them."""
    weights = [(Kind.AFFINE, group_size) for group_size in GROUP_SIZES]
    weights += [(kind, 32) for kind in (Kind.Q4_0, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K)]
    for kind, group_size in weights:
        for num_tokens in _GEMM_TOKENS:
            yield _product("gemm_int8", kind, group_size, num_tokens)
    for group_size in GROUP_SIZES:
        pointers = {"x_ptr": "*bf16", "codes_ptr": "*i8", "scales_ptr": "*fp32", "sums_ptr": "*fp32"}
        constants = {"GROUP_SIZE": group_size, "GROUPS": 1024 // group_size}
        function = gemm_int8.round_tokens_kernel
        yield Form("round_tokens", f"g{group_size}", 1, function, pointers, constants, 4, ("K",))


def dense_forms() -> Iterator[Form]:
    """Yield the products of weights of 16 bits."""
    for num_tokens in _GEMV_TOKENS:
        for stored in (torch.bfloat16, torch.float16):
            config = dense.config_for(num_tokens)
            pointers = {"x_ptr": "*bf16", "w_ptr": _POINTERS[stored], "sums_ptr": "*fp32"}
            what, aligned = f"weight {_POINTERS[stored][1:]}", ("N", "K", "token_stride")
            constants = config.constants(num_tokens)
            yield Form("dense", what, num_tokens, dense.dense_kernel, pointers, constants, config.num_warps, aligned)


def step_forms() -> Iterator[Form]:
    """Yield what stands between the products of a decoder layer."""
    for width in _WIDTHS:
        yield _add_norm(width)
        for ranks in (2, 4):
            yield _exchange(width, ranks)
    yield _silu_mul()
    for heads in _HEADS:
        for types in _KV_TYPES:
            for has_bias in (False, True) if types[0] != "f16" else (False,):
                yield _rotary_store(heads, types, has_bias)
                for piece in (1, attention.longest_piece(heads[0] // heads[1], has_bias)):
                    yield _attend(heads, types, has_bias, piece)
            yield _join(heads, types)


def _product(
    name: str,
    kind: Kind,
    group_size: int,
    num_tokens: int,
    x: torch.dtype = torch.bfloat16,
    scales: torch.dtype = torch.float16,
) -> Form:
    constants: dict[str, str | int | bool | None] = {**kind_constants(kind, group_size)}
    if name == "gemv":
        config = gemv.config_for(num_tokens)
        function, num_warps = gemv.gemv_kernel, config.num_warps
        constants |= config.constants(num_tokens)
    elif name == "gemm":
        gemm_config = gemm.config_for(num_tokens, x)
        function, num_warps = gemm.gemm_kernel, gemm_config.num_warps
        constants |= gemm_config.constants()
    else:
        gemm_config = gemm_int8.config_for(num_tokens, kind)
        function, num_warps = gemm_int8.gemm_int8_kernel, gemm_config.num_warps
        constants |= gemm_config.constants()
    fields = {Kind.AFFINE: "*u8", Kind.Q4_K: "*i16", Kind.Q5_K: "*i16", Kind.Q6_K: "*i32"}
    pointers = {
        "x_ptr": "*i8" if name == "gemm_int8" else _POINTERS[x],
        **({"x_scales_ptr": "*fp32", "x_sums_ptr": "*fp32"} if name == "gemm_int8" else {}),
        "codes_ptr": "*i32",
        "high_ptr": {Kind.Q5_K: "*u8", Kind.Q6_K: "*i16"}.get(kind),
        "scales_ptr": _POINTERS[scales],
        "fields_ptr": fields.get(kind),
        "sums_ptr" if name == "gemv" else "out_ptr": "*fp32",
    }
    what = f"{kind.value} g{group_size}" if kind is Kind.AFFINE else kind.value
    special = {torch.float32: ", x float32"}.get(x, "") + {torch.bfloat16: ", scales bf16"}.get(scales, "")
    aligned = ("N", "K", "split_stride", "token_stride")
    return Form(name, what + special, num_tokens, function, pointers, constants, num_warps, aligned)


def _add_norm(width: int) -> Form:
    block = triton.next_power_of_2(width)
    return Form(
        "add_norm", f"{width} wide", 1, add_norm.add_norm_kernel,
        {"stream_ptr": "*fp32", "parts_ptr": "*fp32", "weight_ptr": "*fp32", "out_ptr": "*bf16"},
        {"BLOCK_D": block, "HAS_PARTS": True, "HAS_NORM": True},
        add_norm.num_warps_for(block), ("D",), ("eps",),
    )  # fmt: skip


def _exchange(width: int, ranks: int) -> Form:
    return Form(
        "exchange_add_norm", f"{width} wide, {ranks} ranks", 1, exchange.exchange_add_norm_kernel,
        {"stream_ptr": "*fp32", "parts_ptr": "*fp32", "weight_ptr": "*fp32", "out_ptr": "*bf16", "packets_ptr": "*i64",
         "turns_ptr": "*i32"},
        {"BLOCK": triton.next_power_of_2(width // 2), "RANK": 1, "SIZE": ranks, "IS_PAIR": True, "HAS_NORM": True},
        exchange.num_warps_for(width), ("D",), ("eps",),
    )  # fmt: skip


def _silu_mul() -> Form:
    pointers = {"parts_ptr": "*fp32", "out_ptr": "*bf16"}
    constants = {"BLOCK": silu_mul.BLOCK}
    return Form(
        "silu_mul", "any", 1, silu_mul.silu_mul_kernel, pointers, constants, silu_mul.NUM_WARPS, ("F",)
    )  # fmt: skip


def _rotary_store(heads: tuple[int, int, int], types: tuple[str, str], has_bias: bool) -> Form:
    names = ("bias", "cos", "sin", "queries", "query_bias", "parts", "key_bias", "key_scale", "value_mean")
    given: dict[str, str | None] = dict.fromkeys((f"{name}_ptr" for name in (*names, "value_scale")), "*fp32")
    if not has_bias:
        given |= dict.fromkeys(("key_bias_ptr", "query_bias_ptr"))
    if types[0] == "f16":
        given |= dict.fromkeys(("key_scale_ptr",))
    if types[1] == "f16":
        given |= dict.fromkeys(("value_scale_ptr", "value_mean_ptr"))
    constants = _of_cache(heads, types) | {"LOG": heads[2].bit_length() - 1, "IS_PLAIN": False}
    pointers = given | _memory() | {"slots_ptr": "*i32"}
    what = _what(heads, types, has_bias)
    return Form("rotary_store", what, 1, rotary_store.rotary_store_kernel, pointers, constants, 1, ("part_stride",))


def _attend(heads: tuple[int, int, int], types: tuple[str, str], has_bias: bool, piece: int) -> Form:
    floats = ("queries", "query_bias", "tile_angles", "sums", "most", "weight")
    pointers: dict[str, str | None] = dict.fromkeys((f"{name}_ptr" for name in floats), "*fp32")
    pointers |= {"lane_angles_ptr": "*fp16", "extents_ptr": "*i32", "tables_ptr": "*i32"} | _memory()
    if not has_bias:
        pointers |= dict.fromkeys(("query_bias_ptr", "tile_angles_ptr", "lane_angles_ptr"))
    config = attention.config_for(heads[0] // heads[1], piece, _BLOCK_SIZE, has_bias)
    constants = _of_cache(heads, types) | config.constants() | {"SPLITS": 16}
    what = _what(heads, types, has_bias)
    return Form(
        "attend", what, piece, attention.attend_kernel, pointers, constants, config.num_warps, (), ("scale",)
    )  # fmt: skip


def _join(heads: tuple[int, int, int], types: tuple[str, str]) -> Form:
    floats = ("sums", "most", "weight", "value_scale", "value_mean")
    pointers: dict[str, str | None] = dict.fromkeys((f"{name}_ptr" for name in floats), "*fp32")
    pointers |= {"extents_ptr": "*i32", "piece_of_row_ptr": "*i32", "out_ptr": "*bf16"}
    if types[1] == "f16":
        pointers |= dict.fromkeys(("value_scale_ptr", "value_mean_ptr"))
    sizes = rotary_store.Heads(*heads, _BLOCK_SIZE).constants()
    del sizes["BLOCK"]
    constants = sizes | {"LOG": heads[2].bit_length() - 1, "N": attention.KEY_BLOCK, "SPLITS": 16}
    return Form("join", _what(heads, types, False), 1, attention.join_kernel, pointers, constants, 1)


def _of_cache(heads: tuple[int, int, int], types: tuple[str, str]) -> dict[str, str | int | bool]:
    sizes = rotary_store.Heads(*heads, _BLOCK_SIZE)
    return {**sizes.constants(), **rotary_store.cache_constants(*types, sizes)}


def _memory() -> dict[str, str | None]:
    of_bytes: dict[str, str | None] = {"keys_ptr": "*u8", "values_ptr": "*u8"}
    return of_bytes | {"key_halves_ptr": "*fp16", "value_halves_ptr": "*fp16"}


def _what(heads: tuple[int, int, int], types: tuple[str, str], has_bias: bool) -> str:
    return f"{heads[0]}:{heads[1]} heads of {heads[2]}, {','.join(types)}{', key bias' if has_bias else ''}"
