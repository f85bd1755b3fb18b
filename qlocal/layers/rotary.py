"""Rotary position embedding: the halves of a head form the pairs (Hugging Face's order, for every format)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.models.base import ModelConfig
from qlocal.models.rope import attention_factor, inverse_frequencies


@dataclass(frozen=True)
class Rotation:
    """The angles of one step's tokens. cos and sin: (T, 1, Dh / 2) f32, attention factor included."""

    cos: Tensor
    sin: Tensor

    def to(self, device: torch.device) -> Rotation:
        return Rotation(self.cos.to(device), self.sin.to(device))

    def rows(self, first: int, last: int) -> Rotation:
        """Return the angles of tokens `first` to `last`."""
        return Rotation(self.cos[first:last], self.sin[first:last])

    def apply(self, x: Tensor) -> Tensor:
        """Rotate queries or keys. x: (T, H, Dh) f32; returns the same shape."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)


class Rotary:
    """The frequencies of one model; scaling for long context is part of them."""

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies = torch.tensor(inverse_frequencies(config), dtype=torch.float64)  # (Dh / 2,)
        self._factor = attention_factor(config)

    def at(self, positions: Tensor) -> Rotation:
        """Return the rotation of `positions` (T,) int64, on their device."""
        # A product in float32 is wrong by 0.008 rad at position 131,072; float64 costs nothing at this size.
        angles = positions.cpu().to(torch.float64)[:, None, None] * self._frequencies
        cos, sin = (angles.cos() * self._factor).float(), (angles.sin() * self._factor).float()
        return Rotation(cos, sin).to(positions.device)
