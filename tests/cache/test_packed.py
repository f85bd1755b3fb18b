"""Rotation and rounding of single vectors."""

from __future__ import annotations

import pytest
import torch

from qlocal.cache import packed


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128])
def test_rotating_twice_changes_nothing_and_products_stay(head_dim: int) -> None:
    x, y = torch.randn(2, 5, head_dim).double()
    torch.testing.assert_close(packed.rotate(packed.rotate(x)), x)
    torch.testing.assert_close((packed.rotate(x) * packed.rotate(y)).sum(-1), (x * y).sum(-1))


def test_one_large_channel_spreads_over_the_head() -> None:
    x = torch.zeros(64)
    x[5] = 8.0
    torch.testing.assert_close(packed.rotate(x).abs(), torch.ones(64))


@pytest.mark.parametrize(("kind", "bound"), [("q8", 5.5e-3), ("q4", 0.083)])
def test_what_rounding_costs_of_a_gaussian_vector(kind: str, bound: float) -> None:
    x = torch.randn(4000, 128, generator=torch.Generator().manual_seed(0))
    read = packed.decode(*packed.encode(x, kind), kind)
    assert float((read - x).norm() / x.norm()) < bound


@pytest.mark.parametrize("kind", ["q8", "q4"])
@pytest.mark.parametrize("factor", [1e-7, 1e-4, 1.0, 3e4])
def test_zeros_and_extreme_sizes_survive(kind: str, factor: float) -> None:
    x = torch.cat((torch.zeros(1, 64), factor * torch.randn(3, 64)))
    read = packed.decode(*packed.encode(x, kind), kind)
    assert not read[0].any() and read.isfinite().all()
    assert float((read - x).abs().max()) <= max(0.7 * factor, 2e-5)  # the least scale of q4 is 7.6e-6


@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_what_was_rounded_rounds_to_itself_nearly(kind: str) -> None:
    once = packed.decode(*packed.encode(torch.randn(100, 64), kind), kind)
    twice = packed.decode(*packed.encode(once, kind), kind)
    assert float((twice - once).norm() / once.norm()) < {"q8": 3e-3, "q4": 0.03}[kind]
