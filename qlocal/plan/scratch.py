"""What is held for a while beside weights and cache: the activations of a step, or a weight on its way into its layout.

Upper bounds, from what the kernels and layers allocate. No torch.
"""

from __future__ import annotations

from qlocal.models.base import ModelConfig
from qlocal.plan.cut import Part
from qlocal.plan.request import Request

_FLOAT = 4
_THREADS_BYTES = 8 << 20
"""What the threads of the CPU's kernels keep for themselves."""
CARD_ATTENTION_TOKENS = 2048
"""Keys and values that a prompt's attention unpacks at once on a card: its scratch does not grow with the context."""
_UNPACKED_BYTES, _QUERY_BYTES = 24, 24
"""A number of a key or value while it is unpacked, and one of a query while it attends: results, and what they are made
of."""
_PANEL_BYTES = 8 << 20
"""Rows that are decoded at a time for torch (`kernels/dispatch.py`)."""


def step_bytes(request: Request, context: int, part: Part, *, is_card: bool, attends: bool = True) -> int:
    """Return the most that one step takes on a device, at a context of so many tokens; on the CPU loading as well.

    attends: whether the device holds keys and values, not experts alone."""
    config = request.checkpoint.config
    chunk = min(request.prefill_chunk, context)
    tokens, logits = chunk + request.slots, 6 * (request.slots + 1) * part.vocab_rows
    if is_card:
        return tokens * _card_bytes(config, part) + _FLOAT * logits + _card_attention(config, chunk, context, part)
    if request.is_native and attends:
        step = _FLOAT * (tokens * _native_width(config) + logits) + _THREADS_BYTES
        return max(step, request.demand.loading_bytes)
    copies = 4 if request.key_type in ("f32", "f16") and request.value_type in ("f32", "f16") else 8
    attention = copies * context * part.num_key_value_heads * config.head_dim + 2 * chunk * context if attends else 0
    step = _FLOAT * (tokens * _width(config, part) + attention + logits) + _PANEL_BYTES + _THREADS_BYTES
    return max(step, request.demand.loading_bytes)


def _card_bytes(config: ModelConfig, part: Part) -> int:
    """Return the bytes a token on a card: the stream, q/k/v, gate and up in float32, inputs in 16 bits."""
    heads = (part.num_attention_heads + 2 * part.num_key_value_heads) * config.head_dim
    return 16 * config.hidden_size + 12 * heads + 10 * part.intermediate_size * max(1, config.num_experts_per_tok)


def _card_attention(config: ModelConfig, chunk: int, context: int, part: Part) -> int:
    """Return what a prompt's attention takes on a card: a piece of the keys and values, and its own tokens, whose keys
    stand once for every query head."""
    unpacked = min(context, CARD_ATTENTION_TOKENS + chunk) * part.num_key_value_heads * config.head_dim
    return _UNPACKED_BYTES * unpacked + _QUERY_BYTES * chunk * part.num_attention_heads * config.head_dim


def _width(config: ModelConfig, part: Part) -> int:
    """Return the floats a token of `layers/decoder.py`."""
    heads = (part.num_attention_heads + 2 * part.num_key_value_heads) * config.head_dim
    return 4 * config.hidden_size + 3 * heads + 6 * part.intermediate_size * max(1, config.num_experts_per_tok)


def _native_width(config: ModelConfig) -> int:
    """Return the floats a token of `csrc/step.cpp`, packed activations of the widest product included."""
    rows = max(1, config.num_experts_per_tok)
    heads = 2 * config.q_size + 2 * config.kv_size
    gathered = rows * config.hidden_size if config.num_experts else 0
    widest = max(config.hidden_size, config.q_size, rows * config.intermediate_size)
    return (2 + rows) * config.hidden_size + heads + gathered + 3 * rows * config.intermediate_size + widest
