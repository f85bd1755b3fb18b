"""What the keys of a GGUF file mean: its configuration, vocabulary and sampling. Reading; writing is `gguf_keys.py`."""

from __future__ import annotations

import math
import struct
from typing import Any

from qlocal.errors import ConfigError, FormatError, TokenizerError, UnsupportedError
from qlocal.formats.base import GenerationDefaults, GgufVocabulary, TokenizerData
from qlocal.formats.generation_config import parse_generation_defaults
from qlocal.formats.gguf_reader import GgufHeader, GgufTensor
from qlocal.formats.gguf_values import ValueType
from qlocal.ggml_types import GgmlType
from qlocal.models import by_gguf_arch
from qlocal.models.base import Architecture, ModelConfig
from qlocal.models.config_fields import parse_config

ROPE_FREQS = "rope_freqs.weight"
# llama.cpp finds the end of a turn by these texts, since GGUF names a single end of text.
_STOP_TEXTS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>"})
_CONTROL = 3
_INTEGERS = frozenset(
    {ValueType.UINT8, ValueType.INT8, ValueType.UINT16, ValueType.INT16}
    | {ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64}
)  # fmt: skip


class _Keys:
    """Typed access to metadata; every error names the file and the key."""

    def __init__(self, header: GgufHeader) -> None:
        self._metadata = header.metadata
        self.where = header.path.name

    def integer(self, key: str) -> int | None:
        """Return a whole number; an array with one entry a layer counts when all are equal."""
        value = self._metadata.get(key)
        if value is None:
            return None
        kind, number = value.kind, value.value
        if kind is ValueType.ARRAY and value.element in _INTEGERS and len(set(number)) == 1:
            return int(number[0])
        if kind is ValueType.ARRAY and value.element in _INTEGERS and number:
            raise UnsupportedError(f"{self.where}: {key} differs by layer, which is not supported")
        if kind not in _INTEGERS:
            raise ConfigError(f"{self.where}: {key} has the type {kind.name}, expected a whole number")
        return int(number)

    def number(self, key: str) -> float | None:
        """Return a float32 as the shortest decimal that means it, so that 1e-6 is 1e-6."""
        value = self._metadata.get(key)
        if value is None:
            return None
        if value.kind not in (ValueType.FLOAT32, ValueType.FLOAT64) or not math.isfinite(value.value):
            raise ConfigError(f"{self.where}: {key} is {value.value!r:.40}, expected a number")
        return shortest_float32(value.value) if value.kind is ValueType.FLOAT32 else float(value.value)

    def text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        if value is not None and value.kind is not ValueType.STRING:
            raise ConfigError(f"{self.where}: {key} has the type {value.kind.name}, expected a text")
        return None if value is None else str(value.value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(key)
        if value is None:
            return default
        if value.kind is not ValueType.BOOL:
            raise ConfigError(f"{self.where}: {key} has the type {value.kind.name}, expected a bool")
        return bool(value.value)

    def array(self, key: str, element: ValueType, length: int | None = None) -> list[Any] | None:
        value = self._metadata.get(key)
        if value is None:
            return None
        if value.kind is not ValueType.ARRAY or value.element is not element:
            raise TokenizerError(f"{self.where}: {key} is not an array of {element.name}")
        if length is not None and len(value.value) != length:
            raise TokenizerError(f"{self.where}: {key} has {len(value.value)} entries for {length} tokens")
        return list(value.value)


def shortest_float32(value: float) -> float:
    """Return the float64 with the fewest decimal digits that rounds to the float32 `value`."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def read_config(header: GgufHeader) -> tuple[Architecture, ModelConfig]:
    """Return architecture and geometry. The rows of token_embd and the presence of output.weight are the truth."""
    keys = _Keys(header)
    arch = keys.text("general.architecture")
    if arch is None:
        raise ConfigError(f"{keys.where}: general.architecture is missing")
    architecture = by_gguf_arch(arch, keys.integer(f"{arch}.expert_count") or 0, where=keys.where)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise FormatError(f"{keys.where}: tensor 'token_embd.weight' is missing")
    rope = _rope(header, keys, arch)
    raw: dict[str, Any] = {
        "hidden_size": keys.integer(f"{arch}.embedding_length"),
        "intermediate_size": keys.integer(f"{arch}.feed_forward_length"),
        "num_hidden_layers": keys.integer(f"{arch}.block_count"),
        "num_attention_heads": keys.integer(f"{arch}.attention.head_count"),
        "num_key_value_heads": keys.integer(f"{arch}.attention.head_count_kv"),
        "head_dim": keys.integer(f"{arch}.attention.key_length"),
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": keys.integer(f"{arch}.context_length"),
        "rms_norm_eps": keys.number(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number(f"{arch}.rope.freq_base") or 10_000.0,  # GGUF's own default
        "rope_scaling": rope,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "num_local_experts": keys.integer(f"{arch}.expert_count"),
        "num_experts_per_tok": keys.integer(f"{arch}.expert_used_count"),
        "bos_token_id": keys.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": keys.integer("tokenizer.ggml.eos_token_id"),
    }
    config = parse_config(raw, architecture, keys.where)
    _check_rotation(keys, arch, config)
    return architecture, config


def _check_rotation(keys: _Keys, arch: str, config: ModelConfig) -> None:
    """Refuse what the model tables cannot say: a partial rotation, values of another width, a sliding window."""
    for key in (f"{arch}.rope.dimension_count", f"{arch}.attention.value_length"):
        if keys.integer(key) not in (None, config.head_dim):
            raise UnsupportedError(f"{keys.where}: {key} is {keys.integer(key)}, expected {config.head_dim}")
    window = keys.integer(f"{arch}.attention.sliding_window")
    if window is not None and 0 < window < config.max_position_embeddings:
        raise UnsupportedError(f"{keys.where}: a sliding window of {window} tokens is not supported")
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "factors" and len(scaling.factors) != config.head_dim // 2:
        raise FormatError(
            f"{keys.where}: {ROPE_FREQS} has {len(scaling.factors)} values, expected {config.head_dim // 2}"
        )


def _rope(header: GgufHeader, keys: _Keys, arch: str) -> dict[str, Any] | None:
    """Return the rotary scaling in the words of a config.json."""
    prefix = f"{arch}.rope.scaling"
    kind = keys.text(f"{prefix}.type") or "none"
    factors = header.tensors.get(ROPE_FREQS)
    if factors is not None:
        if kind != "none":
            raise UnsupportedError(f"{keys.where}: {ROPE_FREQS} together with {prefix}.type is not supported")
        return {"rope_type": "factors", "factors": _rope_factors(factors, keys.where)}
    if kind == "none":
        return None
    factor = keys.number(f"{prefix}.factor")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.integer(f"{prefix}.original_context_length")
        scaling["beta_fast"] = keys.number(f"{prefix}.yarn_beta_fast")
        scaling["beta_slow"] = keys.number(f"{prefix}.yarn_beta_slow")
        attention = keys.number(f"{prefix}.attn_factor")
        if attention is not None and factor is not None and factor > 1.0:
            # GGUF multiplies YaRN's own factor, a config.json replaces it.
            scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return scaling


def _rope_factors(tensor: GgufTensor, where: str) -> tuple[float, ...]:
    if tensor.ggml_type is not GgmlType.F32 or len(tensor.shape) != 1 or tensor.num_bytes > 4096:
        raise FormatError(f"{where}: {ROPE_FREQS} is no short row of F32")
    values = struct.unpack(f"<{tensor.shape[0]}f", tensor.file.read(tensor.offset, tensor.num_bytes))
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise FormatError(f"{where}: {ROPE_FREQS} holds a divisor that is not positive")
    return values


def read_tokenizer(header: GgufHeader) -> TokenizerData:
    """Return the `tokenizer.ggml.*` keys and the chat template; TokenizerError when there is no vocabulary."""
    keys = _Keys(header)
    vocabulary = _vocabulary(keys)
    # llama.cpp's defaults where the key is missing.
    adds_bos = vocabulary.model == "llama" or vocabulary.pre == "llama-bpe"
    return TokenizerData(
        gguf_vocabulary=vocabulary,
        chat_template=keys.text("tokenizer.chat_template"),
        bos_token=_token(vocabulary, vocabulary.bos_token_id),
        eos_token=_token(vocabulary, vocabulary.eos_token_id),
        add_bos=keys.flag("tokenizer.ggml.add_bos_token", adds_bos),
    )


def _vocabulary(keys: _Keys) -> GgufVocabulary:
    model = keys.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"{keys.where}: tokenizer.ggml.model is {str(model)[:40]!r}, expected 'gpt2' or 'llama'",
            hint="The file holds no vocabulary that is known here.",
        )
    tokens = keys.array("tokenizer.ggml.tokens", ValueType.STRING)
    if not tokens:
        raise TokenizerError(f"{keys.where}: tokenizer.ggml.tokens is missing or empty")
    types = keys.array("tokenizer.ggml.token_type", ValueType.INT32, len(tokens))
    scores = keys.array("tokenizer.ggml.scores", ValueType.FLOAT32, len(tokens))
    merges = keys.array("tokenizer.ggml.merges", ValueType.STRING)
    if model == "gpt2" and merges is None:
        raise TokenizerError(f"{keys.where}: tokenizer.ggml.merges is missing")
    if model == "llama" and scores is None:
        raise TokenizerError(f"{keys.where}: tokenizer.ggml.scores is missing")
    default_bos, default_eos = (1, 2) if model == "llama" else (None, None)
    bos, eos = keys.integer("tokenizer.ggml.bos_token_id"), keys.integer("tokenizer.ggml.eos_token_id")
    return GgufVocabulary(
        model=model,
        pre=keys.text("tokenizer.ggml.pre") or "default",
        tokens=tokens,
        token_types=types if types is not None else [1] * len(tokens),
        scores=scores,
        merges=merges,
        bos_token_id=default_bos if bos is None else bos,
        eos_token_id=default_eos if eos is None else eos,
        add_space_prefix=keys.flag("tokenizer.ggml.add_space_prefix", True),
    )


def _token(vocabulary: GgufVocabulary, token_id: int | None) -> str | None:
    if token_id is None or not 0 <= token_id < len(vocabulary.tokens):
        return None
    return vocabulary.tokens[token_id]


def read_generation_defaults(header: GgufHeader) -> GenerationDefaults:
    """Return sampling and stop ids: the named ones (eos, eot, eom) first, then control tokens known by their text."""
    keys = _Keys(header)
    named = [keys.integer(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens = keys.array("tokenizer.ggml.tokens", ValueType.STRING) or []
    types = keys.array("tokenizer.ggml.token_type", ValueType.INT32, len(tokens)) or []
    by_text = [
        i for i, (text, kind) in enumerate(zip(tokens, types, strict=False)) if kind == _CONTROL and text in _STOP_TEXTS
    ]
    stop_ids = tuple([i for i in named if i is not None] + by_text)
    sampling = {
        "temperature": keys.number("general.sampling.temp"),
        "top_k": keys.integer("general.sampling.top_k"),
        "top_p": keys.number("general.sampling.top_p"),
        "repetition_penalty": keys.number("general.sampling.penalty_repeat"),
    }
    num_rows = header.tensors["token_embd.weight"].shape[0]
    return parse_generation_defaults(sampling, keys.where, num_rows, stop_ids)
