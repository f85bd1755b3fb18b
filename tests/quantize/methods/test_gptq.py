from typing import Any

import pytest
import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType
from qlocal.kernels.quantize_blocks import BLOCK_TYPES
from qlocal.kernels.reference import dequantize
from quantize.methods import factor, feedback, gptq, rtn
from quantize.methods.base import AffineSettings
from quantize.methods.ggml import quantize_ggml
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.grids import AffineGrid, BlockGrid, Grid
from tests.quantize.methods import reference
from tests.quantize.methods.conftest import DEAD, collect, make_inputs

DAMP = 0.05
CASES = [
    (AffineGrid(AffineSettings(64, True)), False),
    (AffineGrid(AffineSettings(32, True)), True),
    (AffineGrid(AffineSettings(128, False, min_zero=1)), False),
    (AffineGrid(AffineSettings(32, False)), True),
]


def settings_of(grid: Grid[Any], desc_act: bool = False) -> GptqSettings:
    return GptqSettings((grid.columns,), DAMP, desc_act)


@pytest.mark.parametrize(("grid", "desc_act"), CASES)
def test_blocked_solver_agrees_with_the_plain_one(
    w_NK: Tensor, grid: AffineGrid, desc_act: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "ROUNDS", 0)  # the plain one moves no code afterwards
    inputs = make_inputs()
    hessian = (inputs.double().T @ inputs.double()) / len(inputs)
    alive = torch.arange(len(hessian)) != DEAD
    hessian[DEAD, DEAD] = hessian.diagonal()[alive].mean()
    w_NK[:, DEAD] = 0.0
    settings = settings_of(grid, desc_act)
    mine = dequantize(GptqSolver(collect(inputs), settings).quantize(w_NK.clone(), grid).weight)
    order = gptq.column_order(collect(inputs).mean_square_K, settings)
    plain = reference.gptq(w_NK, hessian, order, grid, DAMP).float()
    # Rounding is chaotic: one code that falls the other way moves all that follow. Most agree, and the loss does.
    assert (mine - plain).abs().gt(1e-4).float().mean() < 0.2
    gram = inputs.T @ inputs
    assert reference.relative_error(mine, w_NK, gram) == pytest.approx(
        reference.relative_error(plain, w_NK, gram), rel=0.02
    )


@pytest.mark.parametrize(("grid", "desc_act"), CASES)
def test_solving_beats_plain_rounding(w_NK: Tensor, inputs: Tensor, grid: AffineGrid, desc_act: bool) -> None:
    w_NK[:, DEAD] = 0.0
    gram = inputs.T @ inputs
    solved = GptqSolver(collect(inputs), settings_of(grid, desc_act)).quantize(w_NK.clone(), grid)
    plain = rtn.quantize_rtn(w_NK, grid.settings)
    error = reference.relative_error(dequantize(solved.weight), w_NK, gram)
    assert error < 0.7 * reference.relative_error(dequantize(plain.weight), w_NK, gram)
    assert error < solved.loss < 2 * error  # the reported loss includes the damping


@pytest.mark.parametrize("ggml_type", sorted(BLOCK_TYPES), ids=lambda t: t.name)
def test_feedback_into_blocks_loses_less_than_searching_them(w_NK: Tensor, inputs: Tensor, ggml_type: GgmlType) -> None:
    grid, gram = BlockGrid(ggml_type), inputs.T @ inputs
    w_NK[:, DEAD] = 0.0
    solved = GptqSolver(collect(inputs), settings_of(grid)).quantize(w_NK.clone(), grid)
    searched = quantize_ggml(w_NK, ggml_type, collect(inputs).mean_square_K)
    error = reference.relative_error(dequantize(solved.weight), w_NK, gram)
    assert error < 0.75 * reference.relative_error(dequantize(searched.weight), w_NK, gram)
    assert error < solved.loss < 2 * error


def test_one_factor_serves_blocks_of_several_sizes(w_NK: Tensor, inputs: Tensor) -> None:
    gram = inputs.T @ inputs
    w_NK[:, DEAD] = 0.0
    solver = GptqSolver(collect(inputs), GptqSettings((32, 256), DAMP))
    for ggml_type in (GgmlType.Q4_K, GgmlType.Q5_0, GgmlType.Q6_K):
        solved = solver.quantize(w_NK.clone(), BlockGrid(ggml_type))
        assert reference.relative_error(dequantize(solved.weight), w_NK, gram) < solved.loss


def test_groups_of_every_size_keep_together_in_the_order_of_solving() -> None:
    energy = torch.rand(768, generator=torch.Generator().manual_seed(0))
    order = gptq.column_order(energy, GptqSettings((256, 32), DAMP))
    assert torch.equal(order.sort().values, torch.arange(768))
    for size in (32, 256):
        assert (order.view(-1, size) // size == order.view(-1, size)[:, :1] // size).all()
    assert energy[order[0]] == energy.max()


def test_only_desc_act_shows_in_the_order_of_groups(w_NK: Tensor, inputs: Tensor) -> None:
    (first, _), (second, _) = CASES[:2]
    aware = GptqSolver(collect(inputs), settings_of(first)).quantize(w_NK.clone(), first).weight
    sorted_ = GptqSolver(collect(inputs), settings_of(second, True)).quantize(w_NK.clone(), second).weight
    assert aware.g_idx is None
    assert sorted_.g_idx is not None and sorted_.g_idx.bincount().eq(32).all()


def test_columns_without_inputs_become_zero(w_NK: Tensor, inputs: Tensor) -> None:
    values = dequantize(
        GptqSolver(collect(inputs), settings_of(CASES[0][0])).quantize(w_NK.clone(), CASES[0][0]).weight
    )
    assert (values[:, DEAD] == 0).all()
    assert torch.isfinite(values).all()


def test_stacked_weights_are_solved_as_if_alone(w_NK: Tensor, inputs: Tensor) -> None:
    both = (
        GptqSolver(collect(inputs), settings_of(CASES[0][0]))
        .quantize(torch.cat([w_NK, -2.0 * w_NK]), CASES[0][0])
        .weight
    )
    alone = GptqSolver(collect(inputs), settings_of(CASES[0][0])).quantize(w_NK.clone(), CASES[0][0]).weight
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
