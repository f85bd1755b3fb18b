"""Inputs with the habits of real activations: correlated, of very different size a channel, one channel dead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantize.methods.base import Statistics

COLUMNS, ROWS, TOKENS, DEAD = 256, 48, 1500, 5


def make_inputs(seed: int = 0, columns: int = COLUMNS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    sizes = torch.rand(columns, generator=generator).mul(3).exp()
    inputs = torch.randn(TOKENS, columns, generator=generator) @ mix * sizes
    inputs[:, DEAD] = 0.0
    return inputs.bfloat16().float()


def collect(inputs: Tensor, *, gram: bool = True) -> Statistics:
    stats = Statistics(inputs.shape[1], gram=gram)
    for part in inputs.split(400):
        stats.add(part)
    stats.finish()
    return stats


@pytest.fixture
def inputs() -> Tensor:
    return make_inputs()


@pytest.fixture
def w_NK() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
