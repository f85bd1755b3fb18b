import torch
from torch import Tensor

from quantize.methods import base
from tests.quantize.methods.conftest import collect, make_inputs


def test_statistics_do_not_depend_on_how_inputs_are_cut(inputs: Tensor) -> None:
    stats = collect(inputs)
    assert stats.tokens == len(inputs)
    torch.testing.assert_close(stats.mean_square_K, inputs.square().mean(0))
    torch.testing.assert_close(stats.gram_KK, (inputs.double().T @ inputs.double()).float(), rtol=1e-5, atol=1e-2)


def test_gram_of_several_strips_equals_one_product(monkeypatch) -> None:
    monkeypatch.setattr(base, "GRAM_BLOCK", 96)
    inputs = make_inputs()
    stats = collect(inputs)
    torch.testing.assert_close(stats.gram_KK, stats.gram_KK.T, rtol=0, atol=0)
    torch.testing.assert_close(stats.gram_KK, (inputs.double().T @ inputs.double()).float(), rtol=1e-5, atol=1e-2)


def test_exact_products_restore_the_precision_setting() -> None:
    before = torch.get_float32_matmul_precision()
    with base.exact_bf16_products():
        pass
    assert torch.get_float32_matmul_precision() == before
