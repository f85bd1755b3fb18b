"""Activations as integers: what rounding costs, seen through products with a weight that changes nothing.

Up to 8 tokens are 16-bit fixed point; more are bytes or words, or bfloat16 on AMX.
"""

from __future__ import annotations

import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch
from qlocal.weights import BlockWeight

COLUMNS = 256
LARGEST_FIXED = 32512


def identity() -> BlockWeight:
    """Return Q8_0 blocks of the identity matrix: 64 / 64."""
    blocks = torch.zeros((COLUMNS, COLUMNS // 32, 34), dtype=torch.uint8)
    blocks[:, :, :2] = torch.tensor([1 / 64], dtype=torch.float16).view(torch.uint8)
    rows = torch.arange(COLUMNS)
    blocks[rows, rows // 32, 2 + rows % 32] = 64
    return BlockWeight(blocks.flatten(1), GgmlType.Q8_0, COLUMNS)


def rounded(x: torch.Tensor, *, keeps_words: bool = False) -> torch.Tensor:
    return dispatch.quant_matmul(x, dispatch.prepare(identity(), "cpu", torch.bfloat16, keeps_words=keeps_words))


@pytest.mark.parametrize("outlier", [1.0, 180.0, 1e5])
def test_rounding_costs_no_more_than_its_share_of_the_energy(isa: str, outlier: float) -> None:
    """The share is columns / (12 * 32512^2), doubled here because its mean is promised, not each case."""
    x = torch.randn((8, COLUMNS), generator=torch.Generator().manual_seed(1))
    x[:, 37] = outlier * x.abs().median()
    lost = (rounded(x) - x).double().pow(2).sum(1) / x.double().pow(2).sum(1)
    assert lost.max() <= 2 * COLUMNS / (12 * LARGEST_FIXED**2)


def test_every_element_is_within_half_a_step(isa: str) -> None:
    x = torch.randn((3, COLUMNS), generator=torch.Generator().manual_seed(2))
    step = x.abs().amax(1, keepdim=True) / LARGEST_FIXED
    assert bool(((rounded(x) - x).abs() <= step * 0.5001).all())


@pytest.mark.parametrize("outlier", [1.0, 180.0, 1e5])
def test_many_tokens_lose_as_small_a_share(isa: str, outlier: float) -> None:
    """Half a step of 4,400 for the activation and 1.2 of 1,900 for the weight, or 2^-8 of both as bfloat16."""
    x = torch.randn((20, COLUMNS), generator=torch.Generator().manual_seed(3))
    x[:, 37] = outlier * x.abs().median()
    lost = (rounded(x, keeps_words=True) - x).double().pow(2).sum(1) / x.double().pow(2).sum(1)
    assert lost.max() <= 2 * (COLUMNS / (12 * 4400**2) + (1.2 / 950) ** 2)


@pytest.mark.parametrize("outlier", [1.0, 180.0])
def test_an_outlier_costs_bytes_no_more_than_its_32_columns(isa: str, outlier: float) -> None:
    x = torch.randn((20, COLUMNS), generator=torch.Generator().manual_seed(4))
    x[:, 37] = outlier * x.abs().median()
    step = x.view(20, -1, 32).abs().amax(2, keepdim=True) / 127  # of words: the largest of 256 columns / 4400
    step = step.maximum(x.abs().amax() / 4400)
    off = (rounded(x) - x).view(20, -1, 32).abs()
    assert bool((off <= step * 0.5001 + 2**-7 * x.view(20, -1, 32).abs()).all())


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("largest", [0.0, 1e-38, 3e38])
def test_tokens_of_any_size_have_finite_products(isa: str, largest: float, count: int) -> None:
    x = torch.full((count, COLUMNS), largest)
    torch.testing.assert_close(rounded(x), x, rtol=1e-4 if count <= 8 else 4e-3, atol=1e-30)


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_visible(isa: str, value: float, count: int) -> None:
    x = torch.ones((count, COLUMNS))
    x[1, 200] = value
    result = rounded(x)
    assert not bool(result[1].isfinite().any()) and bool(result[0].isfinite().all())
