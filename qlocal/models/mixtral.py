"""Mixtral 8x7B and 8x22B: llama's attention, and two of eight experts behind a router in float32."""

from __future__ import annotations

from qlocal.models.base import Architecture

ARCHITECTURE = Architecture(
    model_type="mixtral",
    gguf_arch="llama",
    qkv_bias=False,
    permutes_qk=True,
    is_moe=True,
    default_rope_theta=1_000_000.0,
    refused=(
        ("hidden_act", ("silu",), "another activation"),
        ("sliding_window", (None,), "sliding-window attention"),
        ("attention_bias", (False, None), "attention biases"),
    ),
)
