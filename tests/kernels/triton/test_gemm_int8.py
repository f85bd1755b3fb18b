"""Prompts on int8 tensor cores: every kind of weight against the rounded tokens' exact product, at odd shapes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels import dispatch
from qlocal.kernels.reference import dequantize
from qlocal.kernels.reference.int8_tokens import rounded_tokens
from tests.kernels.triton.weights import KINDS, activations, expected, make, prepared, relative_error

MULTIPLIED = [name for name in KINDS if name != "q6_k"]


@pytest.mark.parametrize("kind", MULTIPLIED)
def test_rounding_the_tokens_is_all_that_is_lost(interpreted: SimpleNamespace, kind: str) -> None:
    weight, packed = make(kind)
    int8, order = interpreted.gemm_int8, packed.column_order
    x = activations(33, weight.shape[1], torch.bfloat16)
    x[5] = 0.0  # a group without a number is no division by zero
    ordered = x if order is None else x[:, order].contiguous()
    result = int8.gemm_int8(int8.round_tokens(ordered, packed), packed)
    values = dequantize(weight)
    truth = rounded_tokens(ordered, packed.group_size) @ (values if order is None else values[:, order]).T
    assert relative_error(result, truth) < 1e-5
    assert relative_error(result, expected(x, weight)) < 1.2e-2  # 8 bits of the largest of 32 to 128 numbers
    assert not result[5].any()


@pytest.mark.parametrize("num_tokens", [17, 64, 200])
def test_every_tile_is_computed_once(interpreted: SimpleNamespace, num_tokens: int) -> None:
    weight, packed = make("affine_g128")
    x = activations(num_tokens, weight.shape[1], torch.bfloat16)
    int8 = interpreted.gemm_int8
    result = int8.gemm_int8(int8.round_tokens(x, packed), packed)
    assert relative_error(result, rounded_tokens(x, 128) @ dequantize(weight).T) < 1e-5


def test_outliers_cost_their_own_group_alone(interpreted: SimpleNamespace) -> None:
    weight, packed = make("affine_g128")
    x = activations(17, weight.shape[1], torch.float32)
    x[:, 7] = 3000.0
    rounded = rounded_tokens(x, 128)
    assert relative_error(rounded[:, 128:], x[:, 128:]) < 1e-2
    int8 = interpreted.gemm_int8
    tokens = int8.round_tokens(x, packed)
    assert relative_error(tokens.scales[1:].T, x[:, 128:].reshape(17, -1, 128).abs().amax(2) / 127) < 1e-6


def test_prompts_of_weights_that_say_so_are_rounded(interpreted: SimpleNamespace) -> None:
    """Long runs alone, and the tokens once for all weights that share them."""
    weight, packed = make("affine_g128")
    plain = prepared(packed)
    int8 = replace(plain, is_int8=True)
    x = activations(17, weight.shape[1], torch.bfloat16)
    both = interpreted.products.products(x, [int8, plain, int8])[0].split(129, dim=1)
    rounded = rounded_tokens(x, 128) @ dequantize(weight).T
    assert relative_error(both[0], rounded) < 1e-5 and torch.equal(both[0], both[2])
    assert relative_error(both[1], rounded) > 2e-3
    few = x[:16].contiguous()
    assert torch.equal(interpreted.products.products(few, [int8]), interpreted.products.products(few, [plain]))


@pytest.mark.parametrize(
    ("kernels", "dtype", "kind", "is_int8"),
    [
        ("int8", torch.bfloat16, "affine_g64", True),
        ("int8", torch.bfloat16, "q6_k", False),  # groups of 16 columns
        ("int8", torch.float32, "affine_g64", False),
        ("auto", torch.bfloat16, "affine_g64", False),
    ],
)
def test_only_who_asks_gets_them(
    monkeypatch: pytest.MonkeyPatch, kernels: str, dtype: torch.dtype, kind: str, is_int8: bool
) -> None:
    monkeypatch.setattr(dispatch, "_is_card", lambda device: True)
    monkeypatch.setattr(dispatch, "_missing_for_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert dispatch.prepare(KINDS[kind](), "cpu", dtype, kernels).is_int8 == is_int8
