"""What a model asks of a device: bytes of a decoder layer, of the head, of a block of the cache. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from qlocal.config import STORED, kv_types
from qlocal.formats.base import Checkpoint, StoredTensor
from qlocal.ggml_types import GgmlType
from qlocal.models.base import QUANTIZED_ROLES, ModelConfig, Role
from qlocal.plan import layout
from qlocal.plan.cut import Part
from qlocal.plan.layout import Held, Matrix
from qlocal.plan.places import kind_of
from qlocal.tensor_split import channel_unit

DENSE_STORAGE = frozenset({"bf16", "f16", "f32"})
KV_BITS = {"f32": 32.0, "f16": 16.0, "q8": 8.5, "q4": 4.5}
"""Bits of a key or value in the cache, by type."""
FINE_VALUES = 2
"""The first layers, whose values q8 holds where q4 is asked for: their noise goes through all others. On
Qwen2.5-Coder-0.5B they make a third of what values in q4 cost, for 1.1 % of the cache of 80 layers."""
_KV_GROUP, _SCALE_BYTES = 32, 2
"""Values of a head that share the scales of q8 and q4, and their bytes; fewer where a head is no multiple."""
_DECODING = 4
"""Copies of an AWQ or GPTQ linear at once while it becomes strips: words, nibbles, codes, records."""
_FFN = frozenset({Role.GATE, Role.UP, Role.DOWN})
_LINEARS = {Role.Q: "qkv", Role.K: "qkv", Role.V: "qkv", Role.GATE: "gate_up", Role.UP: "gate_up"}
"""Weights with one input, which are loaded together; every other one is a linear of its own."""


@dataclass(frozen=True)
class LayerBytes:
    """A decoder layer. ffn: the gated block or all experts, which may compute elsewhere; attention: all else."""

    attention: Held
    ffn: Held


@dataclass(frozen=True)
class Demand:
    """The arithmetic of one checkpoint, loaded in one way. head, key_type, value_type: as in `Plan`."""

    checkpoint: Checkpoint
    dtype: str
    head: str
    key_type: str
    value_type: str
    block_size: int

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    def layer(self, index: int, device: str, part: Part) -> LayerBytes:
        """Return what decoder layer `index` takes on a device, or as much of it as `part` says."""
        key = (self._alike[index], device, part)
        found = self._layers.get(key)
        if found is None:
            found = self._layers[key] = self._layer(self._alike[index], kind_of(device), part)
        return found

    def head_bytes(self, device: str, part: Part) -> Held:
        """Return what the final norm and the output head take."""
        stored = head_of(self.checkpoint)
        held = held_type(stored, self.head)
        matrix = Matrix.of(stored, part.shape(Role.HEAD, self.config))
        matrix = matrix if held is None else replace(matrix, ggml_type=held)
        return Held(4 * self.config.hidden_size) + self._linear([matrix], kind_of(device))

    @cached_property
    def embedding_bytes(self) -> int:
        """Bytes of the embedding, which stays on the map of its file: a token reads one row."""
        return next(s.num_bytes for s in self.checkpoint.tensors.values() if s.spec.role is Role.EMBEDDING)

    def cache_bytes(self, num_blocks: int, device: str, part: Part, layers: Sequence[int]) -> int:
        """Return what so many blocks of the cache take for some layers."""
        tokens = num_blocks * self.block_size * part.num_key_value_heads

        def side(kind: str) -> int:
            num_bytes = tokens * _token_bytes(kind, self.config.head_dim)
            return layout.in_pages(num_bytes) if kind_of(device) == "cpu" else num_bytes

        types = Counter(types_of_layer(layer, self.key_type, self.value_type) for layer in layers)
        return sum(count * sum(map(side, pair)) for pair, count in types.items())

    @cached_property
    def loading_bytes(self) -> int:
        """What the largest linear of AWQ or GPTQ takes on the host while it is repacked: gate and up together."""
        codes = [s for s in self.checkpoint.tensors.values() if s.storage in ("awq", "gptq")]
        return 2 * _DECODING * max((Matrix.of(stored).neutral_bytes for stored in codes), default=0)

    @cached_property
    def ffn_unit(self) -> int:
        """Columns of the FFN that a cut must not part: a quantization group, or a GGML block."""
        return channel_unit(self.checkpoint)

    @cached_property
    def _layers(self) -> dict[tuple[int, str, Part], LayerBytes]:
        return {}

    @cached_property
    def _alike(self) -> list[int]:
        """The first layer that is stored like each one: most are alike, and a plan asks for them thousands of times."""
        first: dict[tuple[object, ...], int] = {}
        return [
            first.setdefault(
                tuple((s.spec.role, s.storage, s.group_size, s.has_g_idx) for s in self._stored[index]), index
            )
            for index in range(self.config.num_hidden_layers)
        ]

    @cached_property
    def _stored(self) -> dict[int | None, list[StoredTensor]]:
        by_layer: dict[int | None, list[StoredTensor]] = {}
        for stored in self.checkpoint.tensors.values():
            by_layer.setdefault(stored.spec.layer, []).append(stored)
        return by_layer

    def _layer(self, index: int, kind: str, part: Part) -> LayerBytes:
        linears: dict[tuple[Role | str, int | None], list[Matrix]] = {}
        vectors = 0
        for stored in self._stored[index]:
            role = stored.spec.role
            if role in QUANTIZED_ROLES or role is Role.ROUTER:
                rows, columns = part.shape(role, self.config)
                if stored.spec.is_bias:
                    vectors += rows
                else:
                    key = (_LINEARS.get(role, role), stored.spec.expert)
                    linears.setdefault(key, []).append(Matrix.of(stored, (rows, columns)))
            else:
                vectors += stored.shape[0]
        attention, ffn = Held(4 * vectors), Held()
        for (name, _), parts in linears.items():
            if name == "gate_up" or name in _FFN:
                ffn += self._linear(parts, kind)
            else:
                attention += self._linear(parts, kind)
        return LayerBytes(attention, ffn)

    def _linear(self, parts: Sequence[Matrix], kind: str) -> Held:
        return layout.on_card(parts) if kind == "cuda" else layout.on_cpu(parts, is_exact=self.dtype == "float32")


def head_of(checkpoint: Checkpoint) -> StoredTensor:
    """Return what the output head is read from: the embedding where they are tied."""
    roles = {stored.spec.role: stored for stored in checkpoint.tensors.values() if stored.spec.layer is None}
    return roles.get(Role.HEAD, roles[Role.EMBEDDING])


def held_type(stored: StoredTensor, head: str) -> GgmlType | None:
    """Return the type that a head gets at load, or None where it is held as it is stored."""
    return None if head == STORED or stored.storage not in DENSE_STORAGE else GgmlType[head.upper()]


def cache_types(kv: str | None, dtype: str) -> tuple[str, str]:
    """Return the types of K and V for what `--kv` says, or for nothing; `auto` twice where the plan is to choose."""
    if kv is None:
        return ("f32", "f32") if dtype == "float32" else ("f16", "f16")
    return kv_types(kv)


def types_of_layer(index: int, key_type: str, value_type: str) -> tuple[str, str]:
    """Return how layer `index` of the model holds K and V, when these types are asked for."""
    return key_type, "q8" if value_type == "q4" and index < FINE_VALUES else value_type


def _token_bytes(kind: str, head_dim: int) -> int:
    """Return the bytes of one token's key or value of one head."""
    values = int(head_dim * KV_BITS[kind] / 8)
    if kind in ("f32", "f16"):
        return values
    group = min(_KV_GROUP, head_dim & -head_dim)
    return values - _SCALE_BYTES * head_dim // _KV_GROUP + _SCALE_BYTES * (head_dim // group)
