"""Qwen2 and Qwen2.5: biases on q, k and v; a sliding window that is written down but never active."""

from __future__ import annotations

from qlocal.models.base import Architecture

ARCHITECTURE = Architecture(
    model_type="qwen2",
    gguf_arch="qwen2",
    qkv_bias=True,
    permutes_qk=False,
    is_moe=False,
    default_rope_theta=10_000.0,
    refused=(
        ("use_sliding_window", (False, None), "sliding-window attention"),
        ("hidden_act", ("silu",), "another activation"),
    ),
    yarn=(32768, 4.0),
)
