"""The forward pass of all three architectures, written for reading: one token, one head, one expert at a time.

Independent of `qlocal.layers`: float64, no batching, no fusing, formulas as in the papers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qlocal.models.base import ModelConfig
from qlocal.models.rope import attention_factor, inverse_frequencies


def naive_logits(tensors: dict[str, Tensor], config: ModelConfig, input_ids: list[int]) -> Tensor:
    """Return (T, V) f64 for one sequence; `tensors` by canonical name."""
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    stream = [weights["model.embed_tokens.weight"][i] for i in input_ids]
    for layer in range(config.num_hidden_layers):
        own = {k.removeprefix(f"model.layers.{layer}."): v for k, v in weights.items() if f"layers.{layer}." in k}
        stream = _attention(own, config, stream)
        stream = [x + _ffn(own, config, _norm(x, own["post_attention_layernorm.weight"], config)) for x in stream]
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return torch.stack([head @ _norm(x, weights["model.norm.weight"], config) for x in stream])


def _norm(x: Tensor, weight: Tensor, config: ModelConfig) -> Tensor:
    return x / torch.sqrt((x * x).sum() / len(x) + config.rms_norm_eps) * weight


def _project(own: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = own[f"self_attn.{name}_proj.weight"] @ x
    return y + own[f"self_attn.{name}_proj.bias"] if f"self_attn.{name}_proj.bias" in own else y


def _rotate(head: Tensor, position: int, config: ModelConfig) -> Tensor:
    half, scale = config.head_dim // 2, attention_factor(config)
    out = head.clone()
    for i, frequency in enumerate(inverse_frequencies(config)):
        cos, sin = math.cos(position * frequency) * scale, math.sin(position * frequency) * scale
        out[i] = head[i] * cos - head[i + half] * sin
        out[i + half] = head[i + half] * cos + head[i] * sin
    return out


def _attention(own: dict[str, Tensor], config: ModelConfig, stream: list[Tensor]) -> list[Tensor]:
    normed = [_norm(x, own["input_layernorm.weight"], config) for x in stream]
    q = [[_rotate(h, t, config) for h in _project(own, "q", x).split(config.head_dim)] for t, x in enumerate(normed)]
    k = [[_rotate(h, t, config) for h in _project(own, "k", x).split(config.head_dim)] for t, x in enumerate(normed)]
    v = [_project(own, "v", x).split(config.head_dim) for x in normed]
    queries_per_kv_head = config.num_attention_heads // config.num_key_value_heads
    out = []
    for t, x in enumerate(stream):
        heads = []
        for head in range(config.num_attention_heads):
            kv_head = head // queries_per_kv_head
            scores = torch.stack([q[t][head] @ k[s][kv_head] for s in range(t + 1)]) / math.sqrt(config.head_dim)
            weights = torch.exp(scores - scores.max())
            weights = weights / weights.sum()
            heads.append(sum(weights[s] * v[s][kv_head] for s in range(t + 1)))
        out.append(x + own["self_attn.o_proj.weight"] @ torch.cat(heads))
    return out


def _ffn(own: dict[str, Tensor], config: ModelConfig, x: Tensor) -> Tensor:
    if not config.num_experts:
        names = (f"mlp.{n}_proj.weight" for n in ("gate", "up", "down"))
        return _gated(*(own[n] for n in names), x)
    scores = torch.exp(own["block_sparse_moe.gate.weight"] @ x)
    probabilities = scores / scores.sum()
    best = sorted(range(config.num_experts), key=lambda e: -probabilities[e])[: config.num_experts_per_tok]
    total = sum(probabilities[e] for e in best)
    out = torch.zeros_like(x)
    for e in best:
        prefix = f"block_sparse_moe.experts.{e}"
        expert = (own[f"{prefix}.{n}.weight"] for n in ("w1", "w3", "w2"))
        out = out + probabilities[e] / total * _gated(*expert, x)
    return out


def _gated(gate: Tensor, up: Tensor, down: Tensor, x: Tensor) -> Tensor:
    g = gate @ x
    return down @ (g / (1 + torch.exp(-g)) * (up @ x))
