import pytest
import torch
from torch import Tensor

from qlocal.errors import FormatError
from qlocal.kernels.reference import dequantize
from quantize.methods import rtn
from quantize.methods.base import AffineSettings


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_rounding_moves_no_weight_by_more_than_a_step(w_NK: Tensor, group_size: int, symmetric: bool) -> None:
    result = rtn.quantize_rtn(w_NK, AffineSettings(group_size, symmetric))
    step = result.weight.scales.float().repeat_interleave(group_size, dim=1)
    values = rtn.decode(result.weight)
    # Only the largest weight of a symmetric group may be clipped, by half a step and the rounding of its scale.
    assert ((values - w_NK).abs() <= 0.505 * step + 1e-6).all()
    assert 0 < result.loss < 0.05


@pytest.mark.parametrize(
    "settings", [AffineSettings(32, True), AffineSettings(32, False), AffineSettings(32, False, 1)]
)
def test_groups_of_zeros_stay_exactly_zero(w_NK: Tensor, settings: AffineSettings) -> None:
    w_NK[:, 32:96] = 0.0
    weight = rtn.quantize_rtn(w_NK, settings).weight
    assert (rtn.decode(weight)[:, 32:96] == 0).all()
    assert (weight.scales > 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_groups_of_one_sign_keep_their_largest_weight(w_NK: Tensor, sign: float) -> None:
    one_sided = w_NK.abs().add(0.1) * sign
    for min_zero in (0, 1):
        result = rtn.quantize_rtn(one_sided, AffineSettings(64, False, min_zero))
        step = result.weight.scales.float().repeat_interleave(64, dim=1)
        assert ((rtn.decode(result.weight) - one_sided).abs() <= 0.51 * step).all()


def test_asymmetric_zero_points_can_be_kept_from_zero(w_NK: Tensor) -> None:
    weight = rtn.quantize_rtn(w_NK.abs(), AffineSettings(64, False, min_zero=1)).weight
    assert weight.zero_points.min() == 1


def test_decoding_is_the_reference_of_the_kernels(w_NK: Tensor) -> None:
    weight = rtn.quantize_rtn(w_NK, AffineSettings(64, False)).weight
    assert torch.equal(rtn.decode(weight), dequantize(weight))


def test_weights_beyond_float16_are_refused() -> None:
    with pytest.raises(FormatError, match="float16"):
        rtn.quantize_rtn(torch.full((4, 64), 2e6), AffineSettings(64, True))


def test_weights_too_small_for_float16_give_no_division_by_zero() -> None:
    values = rtn.decode(rtn.quantize_rtn(torch.full((4, 64), 1e-9), AffineSettings(64, True)).weight)
    assert torch.isfinite(values).all()
