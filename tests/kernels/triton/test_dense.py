"""Weights of 16 bits on a card: read as they are, permuted rows put in order at load."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels import dispatch
from qlocal.kernels.triton import layout
from qlocal.weights import DenseWeight
from tests.kernels.triton.weights import relative_error
from tests.kernels.weights import random_affine

CPU = torch.device("cpu")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU be a card."""
    monkeypatch.setattr(dispatch, "_is_card", lambda device: True)
    monkeypatch.setattr(dispatch, "_missing_for_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 5, 16, 17])
def test_a_dense_weight_is_multiplied(
    interpreted: SimpleNamespace, card: None, tokens: int, stored: torch.dtype
) -> None:
    weight = DenseWeight(torch.randn(37, 600).to(stored), torch.randperm(37))
    prepared = dispatch.prepare(weight, CPU, torch.bfloat16)
    assert dispatch.kernel_name(prepared) == "triton" and prepared.shape == (37, 600)
    x = torch.randn(tokens, 600).bfloat16()
    truth = x.float() @ weight.data[weight.row_map].float().T
    found = dispatch.quant_matmul(x, prepared)
    # More than 16 tokens round what is stored in float16 to their own type.
    assert relative_error(found, truth) < (1e-6 if tokens <= 16 or stored == torch.bfloat16 else 4e-3)


def test_weights_beside_each_other_are_one_result(interpreted: SimpleNamespace, card: None) -> None:
    """Of different kinds, with different numbers of splits."""
    quantized, plain = random_affine(40, 512, 128), DenseWeight(torch.randn(24, 512).bfloat16())
    weights = [dispatch.prepare(weight, CPU, torch.bfloat16) for weight in (quantized, plain)]
    x = torch.randn(3, 512).bfloat16()
    sums = interpreted.products.products(x, weights)
    assert sums.shape[1:] == (3, 64) and sums.is_contiguous()
    alone = torch.cat([dispatch.quant_matmul(x, weight) for weight in weights], dim=1)
    torch.testing.assert_close(sums.sum(0), alone, rtol=1e-5, atol=1e-5)


def test_splits_that_have_no_columns_give_zeros(interpreted: SimpleNamespace, card: None) -> None:
    packed, dense = layout.pack(random_affine(8, 256, 128), "cpu"), torch.randn(8, 256).bfloat16()
    x = torch.randn(2, 256).bfloat16()
    for fill, truth in (
        (lambda sums: interpreted.gemv.gemv_into(x, packed, sums), interpreted.gemv.gemv(x, packed)),
        (lambda sums: interpreted.dense.dense_into(x, dense, sums), x.float() @ dense.float().T),
    ):
        sums = torch.full((6, 2, 8), float("nan"))
        fill(sums)
        torch.testing.assert_close(sums.sum(0), truth, rtol=1e-5, atol=1e-5)
