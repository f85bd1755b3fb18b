"""Turn the fields of a config.json into a ModelConfig. Every field is checked against its range.

Fields are taken by allow-list; what a stranger's file says beyond them changes nothing. GGUF metadata
is translated to the same names by `formats/gguf_metadata.py`, so there is one set of checks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qlocal.errors import ConfigError, UnsupportedError
from qlocal.models.base import Architecture, ModelConfig, RopeScaling

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 22
MAX_POSITIONS = 1 << 24
MAX_HEAD_DIM = 1024


class Fields:
    """Typed access to one JSON object; every error names the file, the field and the value."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def integer(self, name: str, low: int, high: int, *, default: int | None = None) -> int:
        value = self._values.get(name)
        if value is None:
            return int(self._default(name, default))
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{self._where}: {name} is {_shown(value)}, expected a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, *, default: float | None = None) -> float:
        value = self._values.get(name)
        if value is None:
            return float(self._default(name, default))
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{self._where}: {name} is {_shown(value)}, expected a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self._where}: {name} is {_shown(value)}, expected true or false")
        return value

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """Return one id or a list of ids as a tuple; absent is empty."""
        value = self._values.get(name)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        for token_id in ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
                raise ConfigError(
                    f"{self._where}: {name} holds {_shown(token_id)}, expected token ids from 0 to {vocab_size - 1}"
                )
        return tuple(ids)

    def _default(self, name: str, default: Any) -> Any:
        if default is None:
            raise ConfigError(f"{self._where}: {name} is missing", hint="The checkpoint's config.json must state it.")
        return default


def parse_config(raw: Mapping[str, Any], architecture: Architecture, where: str) -> ModelConfig:
    """Read the geometry from the fields of a config.json. `where` names the file in errors."""
    _refuse_unsupported(raw, architecture, where)
    fields = Fields(raw, where)
    hidden_size = fields.integer("hidden_size", 1, MAX_WIDTH)
    num_heads = fields.integer("num_attention_heads", 1, 1024)
    num_kv_heads = fields.integer("num_key_value_heads", 1, 1024, default=num_heads)
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"{where}: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    if raw.get("head_dim") is None and hidden_size % num_heads:
        raise ConfigError(
            f"{where}: head_dim is missing and hidden_size {hidden_size} is no multiple of {num_heads} heads"
        )
    head_dim = fields.integer("head_dim", 2, MAX_HEAD_DIM, default=hidden_size // num_heads)
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:  # what follows from other fields has not been held against the limit
        raise ConfigError(f"{where}: head_dim is {head_dim}, expected an even number up to {MAX_HEAD_DIM}")
    vocab_size = fields.integer("vocab_size", 2, MAX_VOCAB)
    num_experts = fields.integer("num_local_experts", 1, 256, default=8) if architecture.is_moe else 0
    rope = _rope_values(raw)
    rope_fields = Fields({**raw, **rope}, where)
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    bos = fields.token_ids("bos_token_id", vocab_size)
    return ModelConfig(
        model_type=architecture.model_type,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", 1, MAX_WIDTH),
        num_hidden_layers=fields.integer("num_hidden_layers", 1, MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=max_positions,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-12, 1.0),
        rope_theta=rope_fields.number("rope_theta", 1.0, 1e12, default=architecture.default_rope_theta),
        rope_scaling=_rope_scaling(rope, max_positions, where),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        num_experts=num_experts,
        num_experts_per_tok=fields.integer("num_experts_per_tok", 1, num_experts, default=2) if num_experts else 0,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=fields.token_ids("eos_token_id", vocab_size),
    )


def _refuse_unsupported(raw: Mapping[str, Any], architecture: Architecture, where: str) -> None:
    for name, allowed, meaning in architecture.refused:
        if name in raw and raw[name] not in allowed:
            raise UnsupportedError(f"{where}: {name} is {_shown(raw[name])}; {meaning} is not supported")


def _rope_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary settings under one spelling: `rope_parameters` of new files, else `rope_scaling`."""
    values = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return dict(values) if isinstance(values, Mapping) else {}


def _rope_scaling(values: Mapping[str, Any], max_positions: int, where: str) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return None
    fields = Fields(values, f"{where}: rope_scaling")
    if kind == "linear":
        return RopeScaling("linear", fields.number("factor", 1.0, 1024.0))
    # What a GGUF file's rope_freqs.weight holds, checked there. JSON has no tuples, so no config.json can say this.
    if kind == "factors" and isinstance(values.get("factors"), tuple):
        return RopeScaling("factors", factors=values["factors"])
    original = fields.integer("original_max_position_embeddings", 1, MAX_POSITIONS, default=max_positions)
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            fields.number("factor", 1.0, 1024.0),
            original,
            low_freq_factor=fields.number("low_freq_factor", 1e-3, 1024.0),
            high_freq_factor=fields.number("high_freq_factor", 1e-3, 1024.0),
        )
    if kind == "yarn":
        attention_factor = values.get("attention_factor")
        return RopeScaling(
            "yarn",
            fields.number("factor", 1.0, 1024.0),
            original,
            beta_fast=fields.number("beta_fast", 1e-3, 1e6, default=32.0),
            beta_slow=fields.number("beta_slow", 1e-3, 1e6, default=1.0),
            attention_factor=None if attention_factor is None else fields.number("attention_factor", 1e-3, 1e3),
        )
    raise UnsupportedError(
        f"{where}: rope_scaling type {_shown(kind)} is not supported", hint="Supported: linear, yarn, llama3."
    )


def _shown(value: object) -> str:
    text = repr(value) if not (isinstance(value, float) and not math.isfinite(value)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
