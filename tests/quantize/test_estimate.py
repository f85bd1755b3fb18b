from pathlib import Path

from qlocal.models import ARCHITECTURES
from quantize.estimate import Estimate, estimate
from quantize.options import Calibration, Options
from quantize.recipe import make_recipe
from tests.quantize.test_recipe import QWEN2_72B, config_of


def peak(formats: tuple[str, ...], **changes: object) -> int:
    return needed(formats, **changes).memory


def needed(formats: tuple[str, ...], **changes: object) -> Estimate:
    calibration = Calibration(num_samples=8, seq_len=2048)
    options = Options(
        "m", Path("/out.gguf" if formats == ("gguf",) else "/out"), formats, calibration=calibration, **changes
    )  # type: ignore[arg-type]
    return estimate(make_recipe(ARCHITECTURES["qwen2"], config_of(QWEN2_72B), options, "m"), options)


def test_72b_stays_under_twelve_gigabytes_in_every_format() -> None:
    assert peak(("awq", "gptq", "gguf")) < 12 * 10**9


def test_matrices_of_inputs_take_the_most() -> None:
    assert peak(("gptq",)) > peak(("gguf",), hessian=False)
    assert peak(("gguf",), hessian=False) < 6 * 10**9
    assert peak(("gptq",)) > peak(("gptq",), rtn=True)


def test_activations_follow_the_windows() -> None:
    options = Options("m", Path("/out"), ("gptq",), calibration=Calibration(num_samples=8, seq_len=2048))
    run = estimate(make_recipe(ARCHITECTURES["qwen2"], config_of(QWEN2_72B), options, "m"), options)
    assert run.activations == 3 * 8 * 2048 * 8192 * 4


def test_learning_is_counted_where_it_takes_more_than_solving() -> None:
    assert peak(("gptq",)) <= peak(("gptq",), learn=8) < 14 * 10**9
    assert peak(("gptq",), learn=8, rtn=False, group_size=64) == peak(("gptq",), learn=8)


def test_a_layer_of_the_72b_fits_a_card_of_24_gigabytes() -> None:
    of_gptq = needed(("gptq",)).card
    assert 4 * 29696**2 < of_gptq < needed(("awq", "gptq", "gguf"), learn=8).card < 20 * 10**9
    assert needed(("gguf",), hessian=False, verify=False).card < of_gptq
