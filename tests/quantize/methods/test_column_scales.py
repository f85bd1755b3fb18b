import pytest
import torch
from torch import Tensor

from qlocal.kernels.reference import dequantize
from qlocal.weights import AffineWeight
from quantize.methods import column_scales, rtn
from quantize.methods.base import AffineSettings, Quantized, Statistics
from quantize.methods.column_scales import Consumer
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.grids import AffineGrid
from tests.quantize.methods import reference
from tests.quantize.methods.conftest import COLUMNS, DEAD, collect

DAMP = 0.05


def make_solver(stats: Statistics, group_size: int) -> GptqSolver:
    return GptqSolver(stats, GptqSettings((group_size,), DAMP))


def search(w_NK: Tensor, inputs: Tensor, settings: AffineSettings) -> Tensor:
    solver = make_solver(collect(inputs), settings.group_size)
    return column_scales.search_scale([Consumer(w_NK, solver.weights_K)], settings)


def solve(w_NK: Tensor, inputs: Tensor, settings: AffineSettings, scale_K: Tensor | None) -> Quantized[AffineWeight]:
    solver = make_solver(collect(inputs), settings.group_size)
    if scale_K is not None:
        solver.scale(scale_K)
    return solver.quantize(w_NK.clone(), AffineGrid(settings))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_feedback_loses_less_with_the_scale(w_NK: Tensor, inputs: Tensor, group_size: int, symmetric: bool) -> None:
    inputs[:, ::32] *= 8.0  # a few channels far above the others, as real activations have them
    settings, gram = AffineSettings(group_size, symmetric), inputs.T @ inputs
    scale = search(w_NK, inputs, settings)
    result, plain = (solve(w_NK, inputs, settings, scale_K) for scale_K in (scale, None))
    error = reference.relative_error(dequantize(result.weight) / scale, w_NK, gram)
    assert error < 0.95 * reference.relative_error(dequantize(plain.weight), w_NK, gram)


def test_feedback_into_the_scaled_weight_loses_less_than_rounding_it(w_NK: Tensor, inputs: Tensor) -> None:
    settings, gram = AffineSettings(64, False), inputs.T @ inputs
    w_NK[:, DEAD] = 0.0
    scale = search(w_NK, inputs, settings)
    rounded = column_scales.round_scaled(w_NK, scale, settings)
    solved = solve(w_NK, inputs, settings, scale)
    error, of_rounded = (
        reference.relative_error(dequantize(result.weight) / scale, w_NK, gram) for result in (solved, rounded)
    )
    assert error < 0.7 * of_rounded
    assert error < solved.loss < 2 * error  # the reported loss includes the damping


def test_a_scale_of_ones_changes_nothing(w_NK: Tensor, inputs: Tensor) -> None:
    settings = AffineSettings(64, False)
    ones, none = (solve(w_NK, inputs, settings, scale_K) for scale_K in (torch.ones(COLUMNS), None))
    assert torch.equal(dequantize(ones.weight), dequantize(none.weight)) and ones.loss == none.loss


def test_a_scaled_factor_is_that_of_scaled_inputs(inputs: Tensor) -> None:
    """But for the damping, which is added before."""
    scale = torch.linspace(0.5, 2.0, COLUMNS)
    solver = make_solver(collect(inputs), 64)
    before = solver.weights_K
    solver.scale(scale)
    torch.testing.assert_close(solver.weights_K, before / scale.square(), rtol=1e-4, atol=0)
    with pytest.raises(AssertionError, match="scaled already"):
        solver.scale(scale)


def test_column_without_inputs_keeps_the_scale_one(w_NK: Tensor, inputs: Tensor) -> None:
    scale = search(w_NK, inputs, AffineSettings(64, False))
    assert scale[DEAD] == 1.0
    assert scale.min() > 0 and torch.isfinite(scale).all()


def test_nothing_seen_means_no_scale(w_NK: Tensor) -> None:
    settings = AffineSettings(64, False)
    solver = make_solver(Statistics(COLUMNS, gram=True), 64)
    scale = column_scales.search_scale([Consumer(w_NK, solver.weights_K)], settings)
    assert (scale == 1).all()
    assert torch.isfinite(dequantize(column_scales.round_scaled(w_NK, scale, settings).weight)).all()


def test_dividing_rows_divides_the_output(w_NK: Tensor) -> None:
    weight = rtn.quantize_rtn(w_NK, AffineSettings(64, False)).weight
    factors = torch.linspace(0.3, 3.0, len(w_NK))
    divided = dequantize(column_scales.divide_rows(weight, factors))
    torch.testing.assert_close(divided, dequantize(weight) / factors[:, None], rtol=1e-3, atol=1e-6)
