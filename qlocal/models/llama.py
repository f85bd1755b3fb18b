"""Llama 3 and 3.1, and models with the same blocks (SmolLM2): no biases anywhere."""

from __future__ import annotations

from qlocal.models.base import Architecture

ARCHITECTURE = Architecture(
    model_type="llama",
    gguf_arch="llama",
    qkv_bias=False,
    permutes_qk=True,
    is_moe=False,
    default_rope_theta=10_000.0,
    refused=(
        ("hidden_act", ("silu",), "another activation"),
        ("attention_bias", (False, None), "attention biases"),
        ("mlp_bias", (False, None), "FFN biases"),
        ("partial_rotary_factor", (1, 1.0, None), "rotary embedding over a part of the head"),
    ),
)
