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

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), strict=True)
        return torch.cat([_causal_sequence(*part) for part in parts])

    return attend


def _causal_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend inside one sequence; q: (T, H, Dh), k and v: (T, Hk, Dh)."""
    # torch has no grouped kernel for float32 on every device, and its fallback holds all (H, T, T) scores.
    repeats = q.shape[1] // k.shape[1]
    heads_first = (q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1))
    q_h, k_h, v_h = (x.transpose(0, 1)[None] for x in heads_first)  # (1, H, T, Dh)
    return F.scaled_dot_product_attention(q_h, k_h, v_h, is_causal=True)[0].transpose(0, 1)
