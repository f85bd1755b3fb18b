"""Which tensor of a GGUF file gets which type: llama-quantize's rules, so that a name like q4_k_m means the same.

Rules: `docs/formats.md`. The layer decides, never the order in which tensors are met.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlocal.errors import UsageError
from qlocal.formats.gguf_metadata import ROPE_FREQS
from qlocal.formats.gguf_writer import GgufEntry, file_order
from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.models.base import Architecture, ModelConfig, Role, TensorSpec


@dataclass(frozen=True)
class TypeMix:
    """A named mix: the type that most matrices get, and `general.file_type`."""

    name: str
    default: GgmlType
    file_type: int


MIXES = {
    mix.name: mix
    for mix in (
        TypeMix("f32", GgmlType.F32, 0),
        TypeMix("f16", GgmlType.F16, 1),
        TypeMix("bf16", GgmlType.BF16, 32),
        TypeMix("q4_0", GgmlType.Q4_0, 2),
        TypeMix("q4_1", GgmlType.Q4_1, 3),
        TypeMix("q5_0", GgmlType.Q5_0, 8),
        TypeMix("q5_1", GgmlType.Q5_1, 9),
        TypeMix("q8_0", GgmlType.Q8_0, 7),
        TypeMix("q4_k_s", GgmlType.Q4_K, 14),
        TypeMix("q4_k_m", GgmlType.Q4_K, 15),
        TypeMix("q5_k_s", GgmlType.Q5_K, 16),
        TypeMix("q5_k_m", GgmlType.Q5_K, 17),
        TypeMix("q6_k", GgmlType.Q6_K, 18),
    )
}
_UNQUANTIZED = frozenset({"f32", "f16", "bf16"})
# Where rows are no multiple of 256, llama-quantize takes the next finer type with blocks of 32.
_FALLBACKS = {GgmlType.Q4_K: GgmlType.Q5_0, GgmlType.Q5_K: GgmlType.Q5_1, GgmlType.Q6_K: GgmlType.Q8_0}
_EIGHT_EXPERTS = 8
"""llama-quantize's rules for experts hold for exactly this number."""


def choose_types(architecture: Architecture, config: ModelConfig, mix: str, has_imatrix: bool) -> dict[str, GgmlType]:
    """Return the type of every tensor by GGUF name, rope_freqs included where the model has llama3 scaling."""
    if mix not in MIXES:
        raise UsageError(f"type '{mix}' is unknown", hint=f"Known: {', '.join(MIXES)}.")
    types = {
        spec.gguf_name: _tensor_type(spec, config, MIXES[mix], has_imatrix) for spec in architecture.tensors(config)
    }
    if config.rope_scaling is not None and config.rope_scaling.kind in ("llama3", "factors"):
        types[ROPE_FREQS] = GgmlType.F32
    return types


def gguf_entries(architecture: Architecture, config: ModelConfig, types: dict[str, GgmlType]) -> list[GgufEntry]:
    """Return what a file with these types holds, in file order: experts stacked, rope_freqs where it has a type."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in architecture.tensors(config):
        shapes[spec.gguf_name] = spec.shape if spec.expert is None else (config.num_experts, *spec.shape)
    if ROPE_FREQS in types:
        shapes[ROPE_FREQS] = (config.head_dim // 2,)
    return file_order([GgufEntry(name, shape, types[name]) for name, shape in shapes.items()])


def is_linear(spec: TensorSpec) -> bool:
    """Whether GGUF may store this tensor in blocks: a matrix that is not the router."""
    return len(spec.shape) == 2 and spec.role is not Role.ROUTER


def is_head(spec: TensorSpec, config: ModelConfig) -> bool:
    """Whether the logits are computed with this tensor: the head, or the embedding where they are tied."""
    return spec.role is Role.HEAD or (spec.role is Role.EMBEDDING and config.tie_word_embeddings)


def _tensor_type(spec: TensorSpec, config: ModelConfig, mix: TypeMix, has_imatrix: bool) -> GgmlType:
    if not is_linear(spec):
        return GgmlType.F32
    if mix.name in _UNQUANTIZED:
        return mix.default
    columns = spec.shape[-1]
    if is_head(spec, config):
        return _fitting(_output_type(mix, columns), columns)
    return _fitting(_linear_type(spec, config, mix, has_imatrix), columns)


def _output_type(mix: TypeMix, columns: int) -> GgmlType:
    if mix.default is GgmlType.Q8_0 or columns % LAYOUTS[GgmlType.Q6_K].block_size:
        return GgmlType.Q8_0
    return GgmlType.Q6_K


def _linear_type(spec: TensorSpec, config: ModelConfig, mix: TypeMix, has_imatrix: bool) -> GgmlType:
    if spec.role is Role.DOWN:
        return _down_type(_layer(spec), config.num_hidden_layers, mix, has_imatrix)
    if config.num_experts == _EIGHT_EXPERTS:
        if spec.role in (Role.K, Role.V):
            return GgmlType.Q8_0
        if spec.role is Role.O and mix.default is GgmlType.Q4_K:
            return GgmlType.Q5_K
    if spec.role is Role.V:
        return _value_type(_layer(spec), config, mix)
    return mix.default


def _value_type(layer: int, config: ModelConfig, mix: TypeMix) -> GgmlType:
    if mix.name in ("q4_k_m", "q5_k_m") and gets_more_bits(layer, config.num_hidden_layers):
        return GgmlType.Q6_K
    if mix.name == "q4_k_s" and layer < 4:
        return GgmlType.Q5_K
    if mix.default is GgmlType.Q4_K and _is_70b_class(config):
        return GgmlType.Q5_K
    return mix.default


def _down_type(layer: int, num_layers: int, mix: TypeMix, has_imatrix: bool) -> GgmlType:
    if mix.name in ("q4_k_m", "q5_k_m"):
        return GgmlType.Q6_K if gets_more_bits(layer, num_layers) else mix.default
    if layer < num_layers // 8:
        if mix.name == "q4_k_s":
            return GgmlType.Q5_K
        if has_imatrix and mix.name == "q4_0":
            return GgmlType.Q4_1
        if has_imatrix and mix.name == "q5_0":
            return GgmlType.Q5_1
    return mix.default


def gets_more_bits(layer: int, num_layers: int) -> bool:
    """Whether the mixes named `_m` give this layer's attn_v and ffn_down the finer type."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _is_70b_class(config: ModelConfig) -> bool:
    """Whether llama.cpp calls this model a 70B: 80 layers, of qwen2, or of llama with grouped queries."""
    grouped = config.num_attention_heads != config.num_key_value_heads
    return config.num_hidden_layers == 80 and (config.model_type == "qwen2" or grouped)


def _layer(spec: TensorSpec) -> int:
    assert spec.layer is not None, "only layers hold linears with rules of their own"
    return spec.layer


def _fitting(ggml_type: GgmlType, columns: int) -> GgmlType:
    """Return `ggml_type`, or what llama-quantize takes where a row is no multiple of its block."""
    if columns % LAYOUTS[ggml_type].block_size == 0:
        return ggml_type
    fallback = _FALLBACKS.get(ggml_type, ggml_type)
    return fallback if columns % LAYOUTS[fallback].block_size == 0 else GgmlType.F16
