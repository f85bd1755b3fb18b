"""Up to 16 tokens: every kind of weight against the reference, and the splits against one another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels.triton.layout import pack
from tests.kernels.triton.weights import KINDS, activations, expected, make, prepared, relative_error
from tests.kernels.weights import random_affine

# Nothing of the weight is rounded, and products of bfloat16 are exact in float32: only the sums differ.
TOLERANCE = 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 16])
def test_bf16_tokens_give_the_products_of_the_reference(
    interpreted: SimpleNamespace, kind: str, num_tokens: int
) -> None:
    weight, packed = make(kind)
    x = activations(num_tokens, weight.shape[1], torch.bfloat16)
    result = interpreted.matmul.matmul(x, prepared(packed))
    assert result.shape == (num_tokens, weight.shape[0]) and result.dtype == torch.float32
    assert relative_error(result, expected(x, weight)) < TOLERANCE


@pytest.mark.parametrize("num_tokens", range(1, 17))
def test_any_number_of_tokens_is_multiplied(interpreted: SimpleNamespace, num_tokens: int) -> None:
    weight = random_affine(5, 64, 32)
    x = activations(num_tokens, 64, torch.bfloat16)
    assert relative_error(interpreted.gemv.gemv(x, pack(weight, "cpu")), expected(x, weight)) < TOLERANCE


def test_the_longest_rows_of_a_72b_are_multiplied(interpreted: SimpleNamespace) -> None:
    weight = random_affine(3, 29568, 128)
    x = activations(2, 29568, torch.bfloat16)
    assert relative_error(interpreted.gemv.gemv(x, pack(weight, "cpu")), expected(x, weight)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_tokens_of_other_types_are_not_rounded(
    interpreted: SimpleNamespace, dtype: torch.dtype, num_tokens: int
) -> None:
    weight, packed = make("q4_k")
    x = activations(num_tokens, weight.shape[1], dtype)
    assert relative_error(interpreted.gemv.gemv(x, packed), expected(x, weight)) < TOLERANCE


@pytest.mark.parametrize("kind", ["affine_g32", "q6_k"])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_splits_change_nothing_but_the_last_places(interpreted: SimpleNamespace, kind: str, num_tokens: int) -> None:
    weight, packed = make(kind)
    x = activations(num_tokens, weight.shape[1], torch.bfloat16)
    whole = interpreted.gemv.gemv(x, packed, splits=1)
    for splits in (2, 100):
        result = interpreted.gemv.gemv(x, packed, splits=splits)
        torch.testing.assert_close(result, whole, rtol=1e-5, atol=1e-6)


def test_one_token_has_the_same_values_beside_others(interpreted: SimpleNamespace) -> None:
    weight, packed = make("affine_g128")
    x = activations(7, weight.shape[1], torch.bfloat16)
    together = interpreted.gemv.gemv(x, packed)
    alone = interpreted.gemv.gemv(x[3:4], packed)
    torch.testing.assert_close(together[3:4], alone, rtol=1e-5, atol=1e-6)


def test_splits_fill_a_card_and_leave_each_some_work(interpreted: SimpleNamespace) -> None:
    choose = interpreted.gemv.choose_splits
    assert choose(num_tiles=2000, num_chunks=64, num_programs=82 * 8) == 1
    assert choose(num_tiles=16, num_chunks=64, num_programs=82 * 8) == 16
    assert choose(num_tiles=128, num_chunks=231, num_programs=82 * 8) == 6
    assert choose(num_tiles=1, num_chunks=1, num_programs=82 * 8) == 1


def test_too_many_tokens_are_refused(interpreted: SimpleNamespace) -> None:
    weight, packed = make("q4_0")
    with pytest.raises(AssertionError, match="1 to 16 tokens, not 17"):
        interpreted.gemv.gemv(torch.zeros(17, weight.shape[1]), packed)
