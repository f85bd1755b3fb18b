"""What a model architecture is, as a table: configuration fields, tensors, what absorbs a scale.

No torch and no files. The quantizer, the planner, the loader and the engine all read this one table.
An architecture is one module beside this one, named after the checkpoint's `model_type`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Role(str, Enum):
    """What a tensor does. Values are the parameter names of the checkpoint."""

    EMBEDDING = "embed_tokens"
    FINAL_NORM = "norm"
    HEAD = "lm_head"
    INPUT_NORM = "input_layernorm"
    POST_ATTENTION_NORM = "post_attention_layernorm"
    Q = "q_proj"
    K = "k_proj"
    V = "v_proj"
    O = "o_proj"
    ROUTER = "router"
    GATE = "gate_proj"
    UP = "up_proj"
    DOWN = "down_proj"


QUANTIZED_ROLES = frozenset({Role.Q, Role.K, Role.V, Role.O, Role.GATE, Role.UP, Role.DOWN})
"""The linears of a decoder layer that are stored in 4 bits; the router, norms and biases never are."""


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are changed for long context. `kind`: linear, yarn, llama3 or factors.

    `factors` (head_dim / 2 divisors of the frequencies) is what a GGUF file holds for llama3.
    """

    kind: str
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """The geometry of one checkpoint, read from config.json or from GGUF metadata alike."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a checkpoint must hold.

    name: canonical Hugging Face name, with its suffix (`model.layers.0.self_attn.q_proj.weight`).
    shape: (N, K) or (N,). layer and expert: None for global or dense tensors.
    gguf_name: name in a GGUF file; experts of a layer share one stacked tensor there.
    permuted_heads: GGUF stores these rows in neighbouring rotary pairs of this many heads; 0 for no.
    aliases: other spellings of `name` found in the wild.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    gguf_name: str
    layer: int | None = None
    expert: int | None = None
    is_bias: bool = False
    permuted_heads: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Whether the 4-bit formats store this tensor as codes (GGUF also quantizes embedding and head)."""
        return self.role in QUANTIZED_ROLES and not self.is_bias

    @property
    def module(self) -> str:
        """Name without `.weight` or `.bias`."""
        return self.name.rsplit(".", 1)[0]


@dataclass(frozen=True)
class ScaleFold:
    """Who absorbs an AWQ scale: consumers' input columns are multiplied, the producer's outputs divided.

    Names are full tensor names. `producer` is a norm weight, or a linear whose output rows (and bias) are divided.
    """

    producer: str
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """The table of one `model_type`.

    gguf_arch: value of `general.architecture`. qkv_bias: q, k and v have biases.
    permutes_qk: GGUF stores q and k rows in neighbouring rotary pairs. is_moe: experts behind a router.
    refused: config fields that must have one of these values when present, with what it would mean otherwise.
    yarn: (context, factor) for models with exactly this context, what their makers document for longer texts.
    """

    model_type: str
    gguf_arch: str
    qkv_bias: bool
    permutes_qk: bool
    is_moe: bool
    default_rope_theta: float
    refused: tuple[tuple[str, tuple[object, ...], str], ...] = ()
    yarn: tuple[int, float] = (0, 1.0)

    def tensors(self, config: ModelConfig) -> Iterator[TensorSpec]:
        """Yield every tensor of a checkpoint with this geometry, in file order."""
        yield TensorSpec(
            "model.embed_tokens.weight", Role.EMBEDDING, (config.vocab_size, config.hidden_size), "token_embd.weight"
        )
        for layer in range(config.num_hidden_layers):
            yield from self.layer_tensors(config, layer)
        yield TensorSpec("model.norm.weight", Role.FINAL_NORM, (config.hidden_size,), "output_norm.weight")
        if not config.tie_word_embeddings:
            yield TensorSpec("lm_head.weight", Role.HEAD, (config.vocab_size, config.hidden_size), "output.weight")

    def layer_tensors(self, config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
        """Yield the tensors of one decoder layer in the order in which they are computed."""
        yield self._norm(config, layer, Role.INPUT_NORM, "attn_norm")
        yield from self._attention_tensors(config, layer)
        yield self._norm(config, layer, Role.POST_ATTENTION_NORM, "ffn_norm")
        if self.is_moe:
            yield from self._expert_tensors(config, layer)
        else:
            yield from self._dense_ffn_tensors(config, layer)

    def scale_folds(self, config: ModelConfig, layer: int) -> Iterator[ScaleFold]:
        """Yield what absorbs an AWQ scale in this layer (`docs/formats.md`, AWQ)."""
        prefix = f"model.layers.{layer}"
        yield ScaleFold(
            f"{prefix}.input_layernorm.weight", tuple(f"{prefix}.self_attn.{r}_proj.weight" for r in ("q", "k", "v"))
        )
        if config.q_size == config.kv_size:
            yield ScaleFold(f"{prefix}.self_attn.v_proj.weight", (f"{prefix}.self_attn.o_proj.weight",))
        gate_up = [s.name for s in self.layer_tensors(config, layer) if s.role in (Role.GATE, Role.UP, Role.ROUTER)]
        yield ScaleFold(f"{prefix}.post_attention_layernorm.weight", tuple(gate_up))
        ups = [s for s in self.layer_tensors(config, layer) if s.role is Role.UP]
        downs = {s.expert: s.name for s in self.layer_tensors(config, layer) if s.role is Role.DOWN}
        for up in ups:
            yield ScaleFold(up.name, (downs[up.expert],))

    def _norm(self, config: ModelConfig, layer: int, role: Role, gguf: str) -> TensorSpec:
        name = f"model.layers.{layer}.{role.value}.weight"
        return TensorSpec(name, role, (config.hidden_size,), f"blk.{layer}.{gguf}.weight", layer)

    def _attention_tensors(self, config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
        prefix, gguf = f"model.layers.{layer}.self_attn", f"blk.{layer}.attn"
        rows = {Role.Q: config.q_size, Role.K: config.kv_size, Role.V: config.kv_size}
        heads = {Role.Q: config.num_attention_heads, Role.K: config.num_key_value_heads}
        for role, size in rows.items():
            permuted = heads.get(role, 0) if self.permutes_qk else 0
            short = role.value[0]
            weight = (size, config.hidden_size)
            yield TensorSpec(
                f"{prefix}.{role.value}.weight", role, weight, f"{gguf}_{short}.weight", layer, permuted_heads=permuted
            )
            if self.qkv_bias:
                yield TensorSpec(
                    f"{prefix}.{role.value}.bias",
                    role,
                    (size,),
                    f"{gguf}_{short}.bias",
                    layer,
                    is_bias=True,
                    permuted_heads=permuted,
                )
        yield TensorSpec(
            f"{prefix}.o_proj.weight", Role.O, (config.hidden_size, config.q_size), f"{gguf}_output.weight", layer
        )

    def _dense_ffn_tensors(self, config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
        for role, shape in _ffn_shapes(config).items():
            name = f"model.layers.{layer}.mlp.{role.value}.weight"
            yield TensorSpec(name, role, shape, f"blk.{layer}.ffn_{role.value[:-5]}.weight", layer)

    def _expert_tensors(self, config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
        prefix = f"model.layers.{layer}"
        yield TensorSpec(
            f"{prefix}.block_sparse_moe.gate.weight",
            Role.ROUTER,
            (config.num_experts, config.hidden_size),
            f"blk.{layer}.ffn_gate_inp.weight",
            layer,
            aliases=(f"{prefix}.mlp.gate.weight",),
        )
        for expert in range(config.num_experts):
            for role, shape in _ffn_shapes(config).items():
                yield TensorSpec(
                    f"{prefix}.block_sparse_moe.experts.{expert}.{_EXPERT_NAMES[role]}.weight",
                    role,
                    shape,
                    f"blk.{layer}.ffn_{role.value[:-5]}_exps.weight",
                    layer,
                    expert,
                    aliases=(f"{prefix}.mlp.experts.{expert}.{role.value}.weight",),
                )


_EXPERT_NAMES = {Role.GATE: "w1", Role.UP: "w3", Role.DOWN: "w2"}


def _ffn_shapes(config: ModelConfig) -> dict[Role, tuple[int, int]]:
    wide = (config.intermediate_size, config.hidden_size)
    return {Role.GATE: wide, Role.UP: wide, Role.DOWN: (config.hidden_size, config.intermediate_size)}
