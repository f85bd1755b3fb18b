"""A weight that learns has the outputs and slopes of the dense one it stands for; its scales go down the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlocal.kernels.reference import dequantize
from qlocal.weights import AffineWeight
from quantize.methods.base import AffineSettings
from quantize.methods.learned import LearnedWeight, product
from quantize.methods.rtn import affine_weight, quantize_rtn

CPU = torch.device("cpu")
GROUP, TOKENS = 32, 40


@pytest.fixture(params=[False, True], ids=["plain", "g_idx"])
def weight(request: pytest.FixtureRequest, w_NK: Tensor) -> AffineWeight:
    found = quantize_rtn(w_NK, AffineSettings(GROUP, symmetric=False)).weight
    if not request.param:
        return found
    order = torch.randperm(w_NK.shape[1], generator=torch.Generator().manual_seed(3))
    codes = torch.randint(0, 16, w_NK.shape, generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    scales = found.scales.float() * torch.where(torch.arange(found.scales.shape[1]) % 2 == 0, 1.0, -1.0)
    return affine_weight(codes, scales, found.zero_points.float(), GROUP, (order // GROUP).to(torch.int32))


@pytest.fixture
def x_TK(inputs: Tensor) -> Tensor:
    return inputs[:TOKENS].clone().requires_grad_()


def test_product_and_its_slopes_are_those_of_the_dense_weight(weight: AffineWeight, x_TK: Tensor) -> None:
    target = torch.randn(TOKENS, weight.shape[0], generator=torch.Generator().manual_seed(5))
    found = product(x_TK, LearnedWeight(weight, torch.float32, CPU))
    expected = x_TK @ dequantize(weight).T
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
    slopes = [torch.autograd.grad((y - target).square().sum(), x_TK)[0] for y in (found, expected)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-2)


def test_a_step_moves_every_scale_against_its_slope(weight: AffineWeight, x_TK: Tensor) -> None:
    learned = LearnedWeight(weight, torch.float32, CPU)
    learned.rate = 0.01
    target = torch.randn(TOKENS, weight.shape[0], generator=torch.Generator().manual_seed(5))
    torch.autograd.backward((product(x_TK, learned) - target).square().sum())
    moved = learned.stored().scales.float() / weight.scales.float()

    share_NG = torch.ones_like(moved, requires_grad=True)
    of_column = torch.arange(weight.shape[1]) // GROUP if weight.g_idx is None else weight.g_idx.long()
    dense = dequantize(weight) * share_NG[:, of_column]
    torch.autograd.backward((x_TK @ dense.T - target).square().sum())
    assert share_NG.grad is not None
    torch.testing.assert_close(moved, 1.0 - 0.01 * share_NG.grad.sign(), rtol=1e-3, atol=0.0)


def test_codes_zero_points_and_columns_stay(weight: AffineWeight, x_TK: Tensor) -> None:
    learned = LearnedWeight(weight, torch.bfloat16, CPU)
    learned.rate = 0.05
    torch.autograd.backward(product(x_TK, learned).sum())
    stored = learned.stored()
    assert stored.codes is weight.codes and stored.zero_points is weight.zero_points and stored.g_idx is weight.g_idx
    assert stored.scales.dtype == torch.float16 and not torch.equal(stored.scales, weight.scales)
    values = dequantize(stored) if learned.order_K is None else dequantize(stored)[:, learned.order_K]
    assert torch.equal(learned.values(), values.bfloat16())


def test_too_few_inputs_are_no_reason_to_move(weight: AffineWeight, x_TK: Tensor) -> None:
    learned = LearnedWeight(weight, torch.float32, CPU, min_tokens=TOKENS + 1)
    learned.rate = 0.05
    torch.autograd.backward(product(x_TK, learned).sum())
    assert torch.equal(learned.stored().scales, weight.scales)
