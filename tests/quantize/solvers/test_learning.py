"""`--learn`: scales of a whole layer go down the error of its output, and never end worse than they began."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.weights import AffineWeight
from quantize.calibration.hidden_states import HiddenStates
from quantize.calibration.recorder import Recorder
from quantize.cli import main
from quantize.layer_run import LayerRun
from quantize.methods.rtn import quantize_rtn
from quantize.options import Options
from quantize.recipe import make_recipe, unit_specs
from quantize.solvers import learning
from quantize.solvers.base import LayerTask, affine_settings
from quantize.source import PaddedSource, open_source
from tests import tiny
from tests.quantize.conftest import Quantize, divergence
from tests.quantize.test_resume import content

SHAPE = (9, 64, 128)


def layer_task(source_path: Path, scratch: Path, steps: int) -> tuple[LayerTask, LayerRun]:
    """Return layer 1 of a source with random inputs."""
    checkpoint = open_source(source_path)
    options = Options("m", scratch / "out", ("gptq",), group_size=32)
    recipe = make_recipe(checkpoint.architecture, checkpoint.config, options, "m")
    source = PaddedSource(checkpoint, recipe.config)
    states = HiddenStates(scratch / "inputs.bin", SHAPE, create=True)
    states[slice(0, SHAPE[0])] = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    run = LayerRun(source, 1, states, scratch / "scratch.tmp", "cpu")
    run.whole(run.load_layer(), HiddenStates(scratch / "outputs.bin", SHAPE, create=True), Recorder(recipe.config, {}))
    specs = unit_specs(recipe.architecture, recipe.config, "1")
    return LayerTask(source, recipe.targets[0], specs, lambda module, loss: None, {}, run, learn=steps), run


def learned(
    task: LayerTask, run: LayerRun, too_large: float
) -> tuple[dict[str, AffineWeight], dict[str, AffineWeight], float]:
    """Learn from plainly rounded weights whose scales are too large; return them, what they became, and which share of
    the error was left."""
    assert task.target.settings is not None
    weights, dense = {}, {}
    for spec in task.specs:
        values = task.source.read_float32(spec.name)
        if spec.is_quantized:
            rounded = quantize_rtn(values, affine_settings(task.target.settings)).weight
            weights[spec.name] = replace(rounded, scales=(rounded.scales.float() * too_large).half())
        else:
            dense[spec.name] = values
    with torch.inference_mode():  # as solvers run
        found, note = learning.learn(task, run, weights, dense)
    run.close()
    numbers = re.search(r"output error (\S+) of samples held back, (\S+) after", note)
    assert numbers is not None and note.startswith("layer 1: ")
    return weights, found, float(numbers[2]) / float(numbers[1])


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "mixtral"])
def test_scales_that_are_off_are_brought_back(architecture: str, tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "m", architecture)
    before, after, ratio = learned(*layer_task(source, tmp_path, 24), too_large=1.03)
    assert ratio < 0.9
    assert all((after[name].scales.abs().mean() < before[name].scales.abs().mean()) for name in before)
    assert not list(tmp_path.glob("*.tmp"))


def test_what_makes_held_samples_worse_is_not_kept(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "REACH", 4.0)
    before, after, ratio = learned(*layer_task(qwen2, tmp_path, 4), too_large=1.0)
    assert ratio == 1.0
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("arguments", [("--format", "awq"), ("--format", "gptq", "--desc-act")], ids=["awq", "gptq"])
def test_the_same_bytes_come_out_every_time_and_codes_stay(
    arguments: tuple[str, ...], qwen2: Path, run: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "REACH", 0.005)  # what few tokens of a tiny model can bear
    plain, first, second = (run(qwen2, *arguments, *learn, out=name) for name, learn in PLANS.items())
    assert content(first) == content(second)
    before, after = open_checkpoint(plain), open_checkpoint(first)
    moved = 0
    for name, stored in after.tensors.items():
        one, other = before.read(name), after.read(name)
        if isinstance(one, AffineWeight) and isinstance(other, AffineWeight):
            assert torch.equal(one.codes, other.codes) and torch.equal(one.zero_points, other.zero_points)
            moved += not torch.equal(one.scales, other.scales)
        assert stored.shape == before.tensors[name].shape
    assert moved > 0
    assert divergence(qwen2, first) < 1.1 * divergence(qwen2, plain)


PLANS: dict[str, tuple[str, ...]] = {"plain": (), "first": ("--learn", "8"), "second": ("--learn", "8")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--format", "gguf", "--learn", "5"), "--learn belongs to --format awq and gptq"),
        (("--format", "awq", "--rtn", "--learn", "5"), "--learn looks at the outputs of layers"),
        (("--format", "awq", "--learn", "-1"), "--learn is -1, expected 0 to 10000"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: tuple[str, ...], sentence: str, qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(qwen2), "--out", str(tmp_path / "out.gguf"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_steps_are_part_of_what_a_restart_must_repeat() -> None:
    options = Options("m", Path("/out"), ("awq",))
    assert replace(options, learn=5).fingerprint() != options.fingerprint()
