"""The fields of a generation_config.json: one set of checks, whatever file they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlocal.formats.base import GenerationDefaults
from qlocal.models.config_fields import Fields


def parse_generation_defaults(
    raw: Mapping[str, Any], where: str, vocab_size: int, stop_ids: tuple[int, ...]
) -> GenerationDefaults:
    """Return the sampling values; the file's own stop ids come first, then `stop_ids`. `where` names it in errors.

    GGUF metadata is translated to these names by `gguf_metadata.py`. Raises ConfigError.
    """
    fields = Fields(raw, where)
    own = fields.token_ids("eos_token_id", vocab_size)

    def number(name: str, low: float, high: float) -> float | None:
        return None if raw.get(name) is None else fields.number(name, low, high)

    return GenerationDefaults(
        stop_ids=tuple(dict.fromkeys(own + stop_ids)),
        temperature=number("temperature", 0.0, 100.0),
        top_k=None if raw.get("top_k") is None else fields.integer("top_k", 0, vocab_size),
        top_p=number("top_p", 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 0.01, 100.0),
    )
