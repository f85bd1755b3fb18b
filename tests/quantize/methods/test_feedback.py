"""Native code and torch round the same columns alike; the records hold what the values say."""

import pytest
import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType
from qlocal.kernels.quantize_blocks import BLOCK_TYPES
from qlocal.kernels.reference import dequantize
from quantize.methods import feedback
from quantize.methods.base import AffineSettings
from quantize.methods.feedback import Problem
from quantize.methods.grids import AffineGrid, BlockGrid

SHAPES = [(1, 1), (37, 2), (16, 1), (19, 8)]  # rows, groups


def make_problem(rows: int, columns: int, group: int) -> Problem:
    """Return correlated columns whose places inside groups are mixed."""
    generator = torch.Generator().manual_seed(rows * columns)
    mixing = 0.2 * torch.randn(columns, columns, generator=generator) + torch.eye(columns)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    hessian = inputs.T @ inputs / len(inputs)
    factor = torch.linalg.cholesky(hessian.double().flip(0, 1)).flip(0, 1).float()
    targets = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    places = torch.cat([torch.randperm(group, generator=generator) + start for start in range(0, columns, group)])
    return Problem(targets, factor, places, hessian.diagonal())


def in_file_order(values_NB: Tensor, places_B: Tensor) -> Tensor:
    ordered = torch.empty_like(values_NB)
    ordered[:, places_B] = values_NB
    return ordered


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "groups"), SHAPES)
def test_native_code_rounds_as_torch_does(group_size: int, symmetric: bool, rows: int, groups: int) -> None:
    grid = AffineGrid(AffineSettings(group_size, symmetric, min_zero=rows % 2))
    problem = make_problem(rows, min(groups * group_size, 256), group_size)
    native, torch_ = feedback.solve(problem, grid), feedback.solve_in_torch(problem, grid)
    # Sums in another order tip a row's scale now and then; the loss is that of an equally good one.
    differing = (native.values_NB != torch_.values_NB).any(1).sum()
    assert differing <= 1 + rows // 8
    assert native.loss == pytest.approx(torch_.loss, rel=0.02)
    values = in_file_order(native.values_NB, problem.places_B)
    assert torch.equal(dequantize(grid.weight(native.records_NGb)), values)


@pytest.mark.parametrize("ggml_type", sorted(BLOCK_TYPES), ids=lambda t: t.name)
@pytest.mark.parametrize("rows", [1, 21])
def test_blocks_hold_the_values_that_later_columns_saw(ggml_type: GgmlType, rows: int) -> None:
    grid = BlockGrid(ggml_type)
    problem = make_problem(rows, 256, grid.columns)
    solved = feedback.solve(problem, grid)
    values = in_file_order(solved.values_NB, problem.places_B)
    torch.testing.assert_close(dequantize(grid.weight(solved.records_NGb)), values, rtol=1e-6, atol=1e-7)
    errors = (problem.targets_NB - solved.values_NB) @ problem.factor_BB
    assert solved.loss == pytest.approx(float(errors.square().sum()), rel=1e-3)


def test_moving_codes_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, grid = make_problem(40, 256, 32), BlockGrid(GgmlType.Q4_0)
    losses = []
    for rounds in (0, 1, 2):
        monkeypatch.setattr(feedback, "ROUNDS", rounds)
        losses.append(feedback.solve(problem, grid).loss)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_zeros_have_a_scale_above_zero_and_zero_point_eight(symmetric: bool) -> None:
    problem = make_problem(5, 64, 32)
    problem.targets_NB.zero_()
    grid = AffineGrid(AffineSettings(32, symmetric, min_zero=1))
    for solved in (feedback.solve(problem, grid), feedback.solve_in_torch(problem, grid)):
        weight = grid.weight(solved.records_NGb)
        assert (weight.scales > 0).all() and (weight.zero_points == 8).all()
        assert (dequantize(weight) == 0).all()
