"""The gated feed-forward block of one dense layer or of one expert."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qlocal.layers.linear import Placement, QuantLinear
from qlocal.models.base import ModelConfig, Role

Observe = Callable[[Role, "int | None", Tensor, "Tensor | None"], bool]
"""Called with (role, expert, input, tokens) of every linear before it computes; once for linears that share an input.
tokens: (T,) int64 which tokens an expert was given, or None for all of them. Returns whether that is enough: then the
feed-forward block computes no further, and its output means nothing."""


class Ffn:
    """down(silu(gate(x)) * up(x)). `expert` is what observers are told; None for a dense layer."""

    def __init__(self, config: ModelConfig, placement: Placement, *, expert: int | None = None) -> None:
        wide = config.intermediate_size
        self.gate_up = QuantLinear(config.hidden_size, (wide, wide), placement)
        self.down = QuantLinear(wide, (config.hidden_size,), placement)
        self._expert = expert

    def __call__(self, x: Tensor, observe: Observe | None = None, tokens: Tensor | None = None) -> Tensor:
        """Compute the block. x: (T, D) f32, normalized; tokens: what an observer is told. Returns (T, D) f32."""
        if observe is not None and observe(Role.GATE, self._expert, x, tokens):
            return torch.zeros_like(x)
        gate, up = self.gate_up(x)
        inner = F.silu(gate, inplace=True).mul_(up)  # (T, F); both are this call's own
        if observe is not None and observe(Role.DOWN, self._expert, inner, tokens):
            return torch.zeros_like(x)
        (out,) = self.down(inner)
        return out
