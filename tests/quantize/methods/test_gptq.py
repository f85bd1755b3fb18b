import pytest
import torch
from torch import Tensor

from qlocal.kernels.reference import dequantize
from quantize.methods import factor, gptq, rtn
from quantize.methods.base import AffineSettings
from quantize.methods.gptq import GptqSettings, GptqSolver
from tests.quantize.methods import reference
from tests.quantize.methods.conftest import DEAD, collect, make_inputs

ORDERS = [
    GptqSettings(AffineSettings(64, True), group_aware=False),
    GptqSettings(AffineSettings(64, True)),
    GptqSettings(AffineSettings(32, True), desc_act=True),
    GptqSettings(AffineSettings(128, False, min_zero=1)),
]


@pytest.mark.parametrize("settings", ORDERS)
def test_blocked_solver_agrees_with_the_plain_one(w_NK: Tensor, settings: GptqSettings) -> None:
    inputs = make_inputs()
    hessian = (inputs.double().T @ inputs.double()) / len(inputs)
    hessian[DEAD, DEAD] = hessian.diagonal().sum() / len(hessian)
    w_NK[:, DEAD] = 0.0
    solver = GptqSolver(collect(inputs), settings)
    mine = dequantize(solver.quantize(w_NK.clone()).weight)
    order = gptq.column_order(collect(inputs).mean_square_K, settings)
    plain = reference.gptq(w_NK, hessian, order, settings.affine, settings.damp).float()
    # Rounding is chaotic: one code that falls the other way moves all that follow. Most agree, and the loss does.
    assert (mine - plain).abs().gt(1e-4).float().mean() < 0.2
    gram = inputs.T @ inputs
    assert reference.relative_error(mine, w_NK, gram) == pytest.approx(
        reference.relative_error(plain, w_NK, gram), rel=0.02
    )


@pytest.mark.parametrize("settings", ORDERS)
def test_solving_beats_plain_rounding(w_NK: Tensor, inputs: Tensor, settings: GptqSettings) -> None:
    w_NK[:, DEAD] = 0.0
    gram = inputs.T @ inputs
    solved = GptqSolver(collect(inputs), settings).quantize(w_NK.clone())
    plain = rtn.quantize_rtn(w_NK, settings.affine)
    error = reference.relative_error(dequantize(solved.weight), w_NK, gram)
    assert error < 0.7 * reference.relative_error(dequantize(plain.weight), w_NK, gram)
    assert error < solved.loss < 2 * error  # the reported loss includes the damping


def test_only_desc_act_shows_in_the_order_of_groups(w_NK: Tensor, inputs: Tensor) -> None:
    aware = GptqSolver(collect(inputs), ORDERS[1]).quantize(w_NK.clone()).weight
    sorted_ = GptqSolver(collect(inputs), ORDERS[2]).quantize(w_NK.clone()).weight
    assert aware.g_idx is None
    assert sorted_.g_idx is not None and sorted_.g_idx.bincount().eq(32).all()


def test_columns_without_inputs_become_zero(w_NK: Tensor, inputs: Tensor) -> None:
    values = dequantize(GptqSolver(collect(inputs), ORDERS[1]).quantize(w_NK.clone()).weight)
    assert (values[:, DEAD] == 0).all()
    assert torch.isfinite(values).all()


def test_stacked_weights_are_solved_as_if_alone(w_NK: Tensor, inputs: Tensor) -> None:
    both = GptqSolver(collect(inputs), ORDERS[1]).quantize(torch.cat([w_NK, -2.0 * w_NK])).weight
    alone = GptqSolver(collect(inputs), ORDERS[1]).quantize(w_NK.clone()).weight
    same = (dequantize(both)[: len(w_NK)] - dequantize(alone)).abs() < 1e-4
    assert same.float().mean() > 0.9  # matrix products of another height round differently


def test_damping_rises_until_the_matrix_is_definite() -> None:
    direction = torch.randn(64, 1, dtype=torch.float64)
    hessian = (direction @ direction.T).float() - 0.03 * torch.eye(64)
    hessian.diagonal().clamp_(min=1e-3)
    _, damp = factor.factorize(hessian, 0.01)
    assert damp > 0.01


def test_factor_reproduces_the_matrix_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor, "BLOCK", 48)
    inputs = make_inputs()
    hessian = inputs.T @ inputs / len(inputs) + torch.eye(inputs.shape[1])
    upper = factor.factorize(hessian.clone(), 0.0)[0].triu().double()
    torch.testing.assert_close((upper @ upper.T).float(), hessian, rtol=1e-3, atol=1e-3)


def test_failed_factorization_leaves_the_sums_intact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor, "BLOCK", 16)
    hessian = torch.eye(64)
    hessian[0, 1] = hessian[1, 0] = 1.2  # not definite until the damping exceeds 0.2
    upper, damp = factor.factorize(hessian.clone(), 0.05)
    assert 0.2 < damp < 0.25
    expected = hessian + damp * torch.eye(64)
    torch.testing.assert_close(upper.triu() @ upper.triu().T, expected, rtol=1e-4, atol=1e-4)
