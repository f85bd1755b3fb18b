import pytest
import torch
from torch import Tensor

from qlocal.kernels.reference import dequantize
from quantize.methods import awq, rtn
from quantize.methods.awq import Consumer
from quantize.methods.base import AffineSettings, Statistics
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.grids import AffineGrid
from tests.quantize.methods import reference
from tests.quantize.methods.conftest import DEAD, collect


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_beat_plain_rounding(w_NK: Tensor, inputs: Tensor, group_size: int, symmetric: bool) -> None:
    settings, stats, gram = AffineSettings(group_size, symmetric), collect(inputs), inputs.T @ inputs
    scale = awq.search_scale([Consumer(w_NK, stats)], settings)
    result = awq.round_scaled(w_NK, stats, scale, settings)
    error = reference.relative_error(dequantize(result.weight) / scale, w_NK, gram)
    plain = dequantize(rtn.quantize_rtn(w_NK, settings).weight)
    assert error < 0.9 * reference.relative_error(plain, w_NK, gram)
    assert result.loss == pytest.approx(error, rel=1e-3)


def test_feedback_into_the_scaled_weight_loses_less_than_rounding_it(w_NK: Tensor, inputs: Tensor) -> None:
    settings, gram = AffineSettings(64, False), inputs.T @ inputs
    w_NK[:, DEAD] = 0.0
    scale = awq.search_scale([Consumer(w_NK, collect(inputs))], settings)
    rounded = awq.round_scaled(w_NK, collect(inputs), scale, settings)
    solved = GptqSolver(collect(inputs), GptqSettings((64,), 0.05), scale).quantize(w_NK.clone(), AffineGrid(settings))
    error = reference.relative_error(dequantize(solved.weight) / scale, w_NK, gram)
    assert error < 0.7 * rounded.loss
    assert error < solved.loss < 2 * error  # the reported loss includes the damping


def test_column_without_inputs_keeps_the_scale_one(w_NK: Tensor, inputs: Tensor) -> None:
    scale = awq.search_scale([Consumer(w_NK, collect(inputs))], AffineSettings(64, False))
    assert scale[DEAD] == 1.0
    assert scale.min() > 0 and torch.isfinite(scale).all()


def test_nothing_seen_means_no_scale(w_NK: Tensor) -> None:
    stats = Statistics(w_NK.shape[1], gram=True)
    scale = awq.search_scale([Consumer(w_NK, stats)], AffineSettings(64, False))
    result = awq.round_scaled(w_NK, stats, scale, AffineSettings(64, False))
    assert (scale == 1).all()
    assert torch.isfinite(dequantize(result.weight)).all()


def test_sampled_inputs_stand_in_for_the_gram_matrix(w_NK: Tensor, inputs: Tensor) -> None:
    settings, gram = AffineSettings(64, False), inputs.T @ inputs
    stats = collect(inputs, gram=False, sample_per_call=200)
    scale = awq.search_scale([Consumer(w_NK, stats)], settings)
    result = awq.round_scaled(w_NK, stats, scale, settings)
    error = reference.relative_error(dequantize(result.weight) / scale, w_NK, gram)
    plain = dequantize(rtn.quantize_rtn(w_NK, settings).weight)
    assert error < 0.95 * reference.relative_error(plain, w_NK, gram)


def test_dividing_rows_divides_the_output(w_NK: Tensor) -> None:
    weight = rtn.quantize_rtn(w_NK, AffineSettings(64, False)).weight
    factors = torch.linspace(0.3, 3.0, len(w_NK))
    divided = dequantize(awq.divide_rows(weight, factors))
    torch.testing.assert_close(divided, dequantize(weight) / factors[:, None], rtol=1e-3, atol=1e-6)
