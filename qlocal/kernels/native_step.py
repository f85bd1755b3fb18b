"""All decoder layers over the tokens of a step as one native call (`csrc/step.h`).

Knows weights and memory, not models: `layers/native_decoder.py` says what to compute, in the words of this file. It
checks what the C side takes for granted.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.kernels import native
from qlocal.kernels.dispatch import PreparedWeight

KEY_TILE = 16
"""Keys of the cache that lie beside each other; `kKeyTile` of csrc/step_ops.h."""
_UNIT = 32
KV_TYPES = ("f16", "q8", "q4")
"""How the step's cache may hold keys and values; the index is `KvType` of csrc/step_ops.h."""
_OVERHEAD = {"f16": 0, "q8": 2, "q4": 2}
_BITS = {"f16": 16, "q8": 8, "q4": 4}


@dataclass(frozen=True, eq=False)
class Part:
    """One prepared weight of a linear, and its bias (N,) f32 or None."""

    weight: PreparedWeight
    bias: Tensor | None = None


Linear = Sequence[Part]
"""Parts with one input, whose outputs stand one after another."""


@dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of a layer: (P, Hk, bytes) uint8 each, as `cache/storage.py` lays them out, of one of KV_TYPES.

    key_bias, key_scale, value_mean, value_scale: (Hk, Dh) f32 or None, as `cache/conditioning.py` has them, for packed
    types alone; a bias where it is kept out."""

    keys: Tensor
    values: Tensor
    key_type: str
    value_type: str
    key_bias: Tensor | None = None
    key_scale: Tensor | None = None
    value_mean: Tensor | None = None
    value_scale: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Angles:
    """Cosines, then sines. of_tiles: (tiles, Dh) f32 of the first position of every KEY_TILE positions; of_lanes:
    (Dh, KEY_TILE) f32 of the first KEY_TILE positions, without the attention factor."""

    of_tiles: Tensor
    of_lanes: Tensor


@dataclass(frozen=True, eq=False)
class Layer:
    """What one decoder layer computes with. Norms: (D,) f32. feed_forwards: (gate and up, down), one an expert."""

    input_norm: Tensor
    post_attention_norm: Tensor
    qkv: Linear
    o: Linear
    router: Linear
    feed_forwards: Sequence[tuple[Linear, Linear]]
    cache: Cache


@dataclass(frozen=True)
class Geometry:
    """Sizes that all layers share. num_experts: 0 where there is no router."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    experts_per_token: int
    block_size: int
    rms_norm_eps: float


@dataclass(frozen=True)
class Run:
    """`length` tokens of one sequence after `num_past`; table: its blocks, int64."""

    length: int
    num_past: int
    table: Tensor


def unsupported(geometry: Geometry) -> str | None:
    """Return why these sizes have no native step, or None when they have one."""
    for name, size, unit in (
        ("hidden size", geometry.hidden_size, _UNIT),
        ("intermediate size", geometry.intermediate_size, _UNIT),
        ("head size", geometry.head_dim, _UNIT),
        ("cache block", geometry.block_size, KEY_TILE),
    ):
        if size % unit != 0:
            return f"its {name} {size} is no multiple of {unit}"
    return None


class _Part(ctypes.Structure):
    _fields_ = (
        ("matrix", native._Matrix),
        ("column_order", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _Linear(ctypes.Structure):
    _fields_ = (("parts", ctypes.POINTER(_Part)), ("num_parts", ctypes.c_int64))


class _FeedForward(ctypes.Structure):
    _fields_ = (("gate_up", _Linear), ("down", _Linear))


class _Cache(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_type", ctypes.c_int64),
        ("value_type", ctypes.c_int64),
        ("key_bias", ctypes.c_void_p),
        ("key_scale", ctypes.c_void_p),
        ("value_mean", ctypes.c_void_p),
        ("value_scale", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("post_attention_norm", ctypes.c_void_p),
        ("qkv", _Linear),
        ("o", _Linear),
        ("router", _Linear),
        ("feed_forwards", ctypes.POINTER(_FeedForward)),
        ("cache", _Cache),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        ("num_layers", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("intermediate_size", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_experts", ctypes.c_int64),
        ("experts_per_token", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("tile_angles", ctypes.c_void_p),
        ("lane_angles", ctypes.c_void_p),
        ("rms_norm_eps", ctypes.c_float),
    )


class _Run(ctypes.Structure):
    _fields_ = (("length", ctypes.c_int64), ("num_past", ctypes.c_int64), ("table", ctypes.c_void_p))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("hidden_states", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("runs", ctypes.POINTER(_Run)),
        ("num_runs", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
    )


class NativeStep:
    """The layers of a model, described to the library once."""

    def __init__(
        self, library: native.Library, geometry: Geometry, layers: Sequence[Layer], angles: Angles | None = None
    ) -> None:
        """angles: of every position that the cache can hold, where a layer keeps a key bias out."""
        assert unsupported(geometry) is None, "the caller asks first"
        assert angles is not None or all(layer.cache.key_bias is None for layer in layers), "a bias has angles"
        self._library = library
        self._geometry = geometry
        self._keep: list[object] = [layers, angles]  # the memory that the structs point to
        described = (_Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self._keep.append(described)
        self._model = _Model(
            layers=described,
            num_layers=len(layers),
            hidden_size=geometry.hidden_size,
            intermediate_size=geometry.intermediate_size,
            num_heads=geometry.num_heads,
            num_experts=geometry.num_experts,
            experts_per_token=geometry.experts_per_token,
            num_kv_heads=geometry.num_kv_heads,
            block_size=geometry.block_size,
            head_dim=geometry.head_dim,
            tile_angles=None if angles is None else self._angles(angles.of_tiles, (-1, geometry.head_dim)),
            lane_angles=None if angles is None else self._angles(angles.of_lanes, (geometry.head_dim, KEY_TILE)),
            rms_norm_eps=geometry.rms_norm_eps,
        )
        self._one_by_one = [self._only(described, index) for index in range(len(layers))]
        self._step = library.functions.qlocal_step
        self._step.argtypes = [ctypes.c_int32, ctypes.POINTER(_Model), ctypes.POINTER(_Batch)]
        self._step.restype = None

    def run(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        runs: Sequence[Run],
        between: Callable[[], None] | None = None,
    ) -> None:
        """Replace embeddings by the residual stream after all layers, and store the tokens' keys and values.

        hidden_states: (T, D) f32, T >= 1. cos, sin: (T, Dh / 2) f32. The runs stand one after another in T. between: is
        called before every layer, each a call of its own then, and may end the step by an exception.
        """
        tokens, block_size = hidden_states.shape[0], self._geometry.block_size
        assert tokens >= 1 and sum(run.length for run in runs) == tokens, "runs cover the tokens"
        self._check(hidden_states, (tokens, self._geometry.hidden_size))
        for angles in (cos, sin):
            self._check(angles, (tokens, self._geometry.head_dim // 2))
        for run in runs:
            assert run.table.dtype == torch.int64 and run.table.is_contiguous(), "block tables are plain int64"
            assert run.length >= 1 and run.num_past + run.length <= len(run.table) * block_size, "the table reaches"
        described = (_Run * len(runs))(*(_Run(run.length, run.num_past, run.table.data_ptr()) for run in runs))
        batch = _Batch(hidden_states.data_ptr(), cos.data_ptr(), sin.data_ptr(), described, len(runs), tokens)
        if between is None:
            self._step(self._library.isa, self._model, batch)
            return
        for model in self._one_by_one:
            between()
            self._step(self._library.isa, model, batch)

    def _only(self, described: ctypes.Array[_Layer], index: int) -> _Model:
        """Return the model as if it had one layer."""
        model = _Model.from_buffer_copy(self._model)
        model.layers = ctypes.pointer(described[index])
        model.num_layers = 1
        return model

    def _check(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        plain = tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device.type == "cpu"
        assert plain and tensor.shape == shape, f"a plain float32 {shape}, not {tuple(tensor.shape)} {tensor.dtype}"

    def _layer(self, layer: Layer) -> _Layer:
        geometry = self._geometry
        hidden, wide = geometry.hidden_size, geometry.intermediate_size
        q_size, kv_size = (heads * geometry.head_dim for heads in (geometry.num_heads, geometry.num_kv_heads))
        for norm in (layer.input_norm, layer.post_attention_norm):
            self._check(norm, (hidden,))
        assert len(layer.feed_forwards) == max(geometry.num_experts, 1), "a feed-forward an expert, or one"
        blocks = [
            _FeedForward(self._linear(gate_up, hidden, 2 * wide), self._linear(down, wide, hidden))
            for gate_up, down in layer.feed_forwards
        ]
        feed_forwards = (_FeedForward * len(blocks))(*blocks)
        self._keep.append(feed_forwards)
        return _Layer(
            input_norm=layer.input_norm.data_ptr(),
            post_attention_norm=layer.post_attention_norm.data_ptr(),
            qkv=self._linear(layer.qkv, hidden, q_size + 2 * kv_size),
            o=self._linear(layer.o, q_size, hidden),
            router=self._linear(layer.router, hidden, geometry.num_experts),
            feed_forwards=feed_forwards,
            cache=self._cache(layer.cache),
        )

    def _cache(self, cache: Cache) -> _Cache:
        geometry = self._geometry
        for memory, kind in ((cache.keys, cache.key_type), (cache.values, cache.value_type)):
            groups = geometry.head_dim // _UNIT
            token_bytes = geometry.head_dim * _BITS[kind] // 8 + groups * _OVERHEAD[kind]
            stored = (geometry.num_kv_heads, geometry.block_size * token_bytes)
            assert memory.shape[1:] == stored, f"cache blocks are {stored}, not {tuple(memory.shape[1:])}"
            assert memory.dtype == torch.uint8 and memory.is_contiguous(), "the step reads bytes"
        constants = (cache.key_bias, cache.key_scale, cache.value_mean, cache.value_scale)
        for constant in constants:
            if constant is not None:
                self._check(constant, (geometry.num_kv_heads, geometry.head_dim))
        pointers = (None if constant is None else constant.data_ptr() for constant in constants)
        types = (KV_TYPES.index(kind) for kind in (cache.key_type, cache.value_type))
        return _Cache(cache.keys.data_ptr(), cache.values.data_ptr(), *types, *pointers)

    def _angles(self, angles: Tensor, shape: tuple[int, int]) -> int:
        self._check(angles, (len(angles), shape[1]) if shape[0] < 0 else shape)
        return angles.data_ptr()

    def _linear(self, linear: Linear, columns: int, rows: int) -> _Linear:
        shapes = [part.weight.shape for part in linear]
        fits = sum(n for n, _ in shapes) == rows and all(k == columns for _, k in shapes)
        assert fits, f"parts of {shapes} for {rows} rows of {columns} columns"
        parts = (_Part * len(linear))(*(self._part(part) for part in linear))
        self._keep.append(parts)
        return _Linear(parts, len(linear))

    def _part(self, part: Part) -> _Part:
        matrix = part.weight.matrix
        assert matrix is not None, "the caller asks whether all weights are native"
        order, bias = matrix.column_order, part.bias
        if order is not None:
            assert order.dtype == torch.int64 and order.is_contiguous(), "a column order is plain int64"
        if bias is not None:
            self._check(bias, (part.weight.shape[0],))
        return _Part(
            matrix=matrix.matrix,
            column_order=None if order is None else order.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
        )
