"""Many tokens: every kind of weight against the reference, at odd numbers of tokens and rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels.triton.layout import pack
from tests.kernels.triton.weights import KINDS, activations, expected, make, prepared, relative_error
from tests.kernels.weights import random_affine


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [17, 65])
def test_weights_are_rounded_to_the_type_of_the_tokens(
    interpreted: SimpleNamespace, kind: str, num_tokens: int
) -> None:
    weight, packed = make(kind)
    x = activations(num_tokens, weight.shape[1], torch.float16)
    result = interpreted.matmul.matmul(x, prepared(packed))
    assert result.shape == (num_tokens, weight.shape[0]) and result.dtype == torch.float32
    assert relative_error(result, expected(x, weight, torch.float16)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_tokens_give_the_products_of_the_reference(interpreted: SimpleNamespace, kind: str) -> None:
    weight, packed = make(kind)
    x = activations(33, weight.shape[1], torch.bfloat16)
    # A card rounds weights to the nearest bfloat16 (1.7e-3 of their norm), the interpreter towards zero (3.4e-3).
    assert relative_error(interpreted.matmul.matmul(x, prepared(packed)), expected(x, weight)) < 4e-3


@pytest.mark.parametrize("kind", ["affine_g128", "q5_k"])
def test_float32_tokens_round_nothing(interpreted: SimpleNamespace, kind: str) -> None:
    weight, packed = make(kind)
    x = activations(33, weight.shape[1], torch.float32)
    assert relative_error(interpreted.gemm.gemm(x, packed), expected(x, weight)) < 1e-6


def test_every_tile_is_computed_once_whatever_their_order(interpreted: SimpleNamespace) -> None:
    weight = random_affine(70, 32, 32)
    x = activations(300, 32, torch.float32)
    assert relative_error(interpreted.gemm.gemm(x, pack(weight, "cpu")), expected(x, weight)) < 1e-6
