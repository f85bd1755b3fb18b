"""What is taken off keys and values before they are rounded, and put back when they are read. Exact without rounding.

A key bias is far larger than what varies, in Qwen2 above 200: it is not stored, but rotated to the key's position
when it is read. Pairs of a head where keys are large and queries small would give the rounding its size, and matter
least: keys are scaled by pair. Values lose their mean, which attention gives back whole, as its weights add up to one,
and their scales are drawn half way together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The constants of one layer, all (Hk, Dh) f32. key_bias: None for models without one. key_scale: the same for both
    halves of a pair, so that it goes past the rotary embedding. rotate: (x (T, Hk, Dh), positions (T,)) to x rotated.
    """

    key_bias: Tensor | None
    key_scale: Tensor
    value_mean: Tensor
    value_scale: Tensor
    rotate: Callable[[Tensor, Tensor], Tensor]

    def keys_in(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Return what is stored of rotated keys (T, Hk, Dh)."""
        return (keys - self._bias_at(positions)) * self.key_scale

    def keys_out(self, stored: Tensor, first: int = 0) -> Tensor:
        """Return the rotated keys (Hk, S, Dh) of positions from `first` on."""
        bias = self._bias_at(torch.arange(first, first + stored.shape[1], device=stored.device))
        return stored / self.key_scale[:, None] + (bias if isinstance(bias, float) else bias.transpose(0, 1))

    def values_in(self, values: Tensor) -> Tensor:
        """Return what is stored of values (T, Hk, Dh)."""
        return (values - self.value_mean) * self.value_scale

    def values_out(self, stored: Tensor) -> Tensor:
        """Return the values (Hk, S, Dh)."""
        return stored / self.value_scale[:, None] + self.value_mean[:, None]

    def _bias_at(self, positions: Tensor) -> Tensor | float:
        if self.key_bias is None:
            return 0.0
        return self.rotate(self.key_bias.expand(len(positions), -1, -1), positions)
