"""Softmax attention in float32 for grouped queries: over plain sequences, and over the block cache.

An `Attend` is what a decoder layer calls with the tokens of a step; where older keys come from is its affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q (T, H, Dh), k (T, Hk, Dh), v (T, Hk, Dh)), all f32 and rotated, to (T, H, Dh) f32."""


def causal(lengths: Sequence[int]) -> Attend:
    """Return attention over whole sequences that stand one after another in T, without a cache."""
    sizes = list(lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(torch.split(x, sizes) for x in (q, k, v)), strict=True)
        return torch.cat([attend_sequence(q, k.transpose(0, 1), v.transpose(0, 1)) for q, k, v in parts])

    return attend


def attend_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from the last t tokens of one sequence to all S of it, causally.

    q: (t, H, Dh) f32. k and v: (Hk, S, Dh) f32. Returns (t, H, Dh) f32.
    """
    return _decode(q, k, v) if q.shape[0] == 1 else _prefill(q, k, v)


def _decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query sees every key: two small matrix products a KV head, with its query heads as rows."""
    grouped = q.reshape(k.shape[0], -1, q.shape[2]) * q.shape[2] ** -0.5  # (Hk, H / Hk, Dh)
    scores = torch.bmm(grouped, k.transpose(1, 2))  # (Hk, H / Hk, S)
    return torch.bmm(scores.softmax(-1), v).view(q.shape)


def _prefill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    tokens, context = q.shape[0], k.shape[1]
    on_cpu = q.device.type == "cpu"
    if not on_cpu:  # no grouped kernel for float32 there: the fall-back would hold all (H, t, S) scores
        repeats = q.shape[1] // k.shape[0]
        k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
    mask = None
    if context > tokens:  # is_causal would align the first query with the first key
        own_position = torch.arange(context - tokens, context, device=q.device)
        mask = torch.arange(context, device=q.device) <= own_position[:, None]  # (t, S)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, enable_gqa=on_cpu
    )
    return out[0].transpose(0, 1)
