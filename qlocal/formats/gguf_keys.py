"""The metadata keys of a GGUF file that we write: geometry, rotary scaling, vocabulary, sampling.

Reading: `gguf_metadata.py`.
"""

from __future__ import annotations

import math

from qlocal.formats import gguf_values as values
from qlocal.formats.base import GenerationDefaults, GgufVocabulary, TokenizerData
from qlocal.formats.gguf_values import MetaValue, ValueType
from qlocal.models.base import Architecture, ModelConfig
from qlocal.models.rope import llama3_divisors

_QUANTIZATION_VERSION = 2
"""The version of GGML's block layouts."""


def model_keys(architecture: Architecture, config: ModelConfig, name: str, file_type: int) -> dict[str, MetaValue]:
    """Return the general and geometry keys. name: shown by other programs; file_type: `TypeMix.file_type`."""
    arch = architecture.gguf_arch
    keys = {
        "general.architecture": values.text(arch),
        "general.type": values.text("model"),
        "general.name": values.text(name),
        "general.file_type": values.uint32(file_type),
        "general.quantization_version": values.uint32(_QUANTIZATION_VERSION),
        f"{arch}.context_length": values.uint32(config.max_position_embeddings),
        f"{arch}.embedding_length": values.uint32(config.hidden_size),
        f"{arch}.block_count": values.uint32(config.num_hidden_layers),
        f"{arch}.feed_forward_length": values.uint32(config.intermediate_size),
        f"{arch}.attention.head_count": values.uint32(config.num_attention_heads),
        f"{arch}.attention.head_count_kv": values.uint32(config.num_key_value_heads),
        f"{arch}.attention.layer_norm_rms_epsilon": values.float32(config.rms_norm_eps),
        f"{arch}.rope.freq_base": values.float32(config.rope_theta),
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        keys[f"{arch}.attention.key_length"] = values.uint32(config.head_dim)
        keys[f"{arch}.attention.value_length"] = values.uint32(config.head_dim)
    if arch == "llama":
        keys["llama.vocab_size"] = values.uint32(config.vocab_size)
        keys["llama.rope.dimension_count"] = values.uint32(config.head_dim)
    if architecture.is_moe:
        keys[f"{arch}.expert_count"] = values.uint32(config.num_experts)
        keys[f"{arch}.expert_used_count"] = values.uint32(config.num_experts_per_tok)
    return keys | _rope_keys(arch, config)


def _rope_keys(arch: str, config: ModelConfig) -> dict[str, MetaValue]:
    """Return linear's and YaRN's keys; llama3's scaling is a tensor instead (`rope_factors`)."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("linear", "yarn"):
        return {}
    prefix = f"{arch}.rope.scaling"
    keys = {f"{prefix}.type": values.text(scaling.kind), f"{prefix}.factor": values.float32(scaling.factor)}
    if scaling.kind == "yarn":
        keys[f"{prefix}.original_context_length"] = values.uint32(scaling.original_max_position_embeddings)
        keys[f"{prefix}.yarn_beta_fast"] = values.float32(scaling.beta_fast)
        keys[f"{prefix}.yarn_beta_slow"] = values.float32(scaling.beta_slow)
        if scaling.attention_factor is not None:
            # A config.json replaces YaRN's own factor, GGUF multiplies it.
            own_factor = 0.1 * math.log(scaling.factor) + 1.0
            keys[f"{prefix}.attn_factor"] = values.float32(scaling.attention_factor / own_factor)
    return keys


def rope_factors(config: ModelConfig) -> list[float] | None:
    """Return the head_dim / 2 values of rope_freqs.weight, or None where the model needs none."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in ("llama3", "factors"):
        return None
    return list(scaling.factors) if scaling.kind == "factors" else llama3_divisors(config)


def tokenizer_keys(vocabulary: GgufVocabulary, data: TokenizerData) -> dict[str, MetaValue]:
    """Return the `tokenizer.*` keys. data: for the bos rule and the chat template."""
    keys = {
        "tokenizer.ggml.model": values.text(vocabulary.model),
        "tokenizer.ggml.pre": values.text(vocabulary.pre),
        "tokenizer.ggml.tokens": values.array(ValueType.STRING, vocabulary.tokens),
        "tokenizer.ggml.token_type": values.array(ValueType.INT32, vocabulary.token_types),
    }
    if vocabulary.scores is not None:
        keys["tokenizer.ggml.scores"] = values.array(ValueType.FLOAT32, vocabulary.scores)
    if vocabulary.merges is not None:
        keys["tokenizer.ggml.merges"] = values.array(ValueType.STRING, vocabulary.merges)
    if vocabulary.bos_token_id is not None:
        keys["tokenizer.ggml.bos_token_id"] = values.uint32(vocabulary.bos_token_id)
    if vocabulary.eos_token_id is not None:
        keys["tokenizer.ggml.eos_token_id"] = values.uint32(vocabulary.eos_token_id)
    if vocabulary.model == "llama":
        keys["tokenizer.ggml.unknown_token_id"] = values.uint32(_unknown(vocabulary))
        keys["tokenizer.ggml.add_space_prefix"] = values.flag(vocabulary.add_space_prefix)
    keys["tokenizer.ggml.add_bos_token"] = values.flag(data.add_bos)
    keys["tokenizer.ggml.add_eos_token"] = values.flag(False)
    if data.chat_template is not None:
        keys["tokenizer.chat_template"] = values.text(data.chat_template)
    return keys


def _unknown(vocabulary: GgufVocabulary) -> int:
    """Return the id of the unknown token (type 2); the first one by custom."""
    return vocabulary.token_types.index(2) if 2 in vocabulary.token_types else 0


def sampling_keys(defaults: GenerationDefaults) -> dict[str, MetaValue]:
    """Return the `general.sampling.*` keys for what the makers recommend; nothing where they are silent."""
    numbers = {"temp": defaults.temperature, "top_p": defaults.top_p, "penalty_repeat": defaults.repetition_penalty}
    keys = {f"general.sampling.{name}": values.float32(x) for name, x in numbers.items() if x is not None}
    if defaults.top_k is not None:
        keys["general.sampling.top_k"] = values.int32(defaults.top_k)
    return keys
