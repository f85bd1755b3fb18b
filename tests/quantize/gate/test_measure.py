"""The end-of-turn check, on a tiny model that has learnt to stop; and verdicts on numbers that are none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.hf_checkpoint import HfCheckpoint
from qlocal.metrics import Evaluation
from quantize.gate.limits import Limits
from quantize.gate.measure import Measured, Stops, measure
from quantize.gate.streaming import Machine, StreamedDecoder, run_layers
from quantize.gate.texts import Reading, read_material
from quantize.source import PaddedSource, open_source
from tests import tiny
from tests.quantize.conftest import logits

CPU = Machine()


def padded(folder: Path) -> PaddedSource:
    source: HfCheckpoint = open_source(folder)
    return PaddedSource(source, source.config)


@pytest.fixture
def stopping(tmp_path: Path) -> Path:
    """A model whose head gives the stop token the highest logit at the ends of the held-out turns."""
    folder = tiny.write_checkpoint(tmp_path / "stops", "llama", {"hidden_size": 256, "num_attention_heads": 8})
    source = padded(folder)
    material = read_material(source, Reading())
    decoder, _ = run_layers(source, [], [chunk[:-1] for chunk in material.chunks], CPU)
    states = torch.stack([decoder.states(chunk)[place - 1] for chunk, place in material.ends])
    norm = source.read_float32("model.norm.weight")
    normed = states * (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm
    wanted = torch.full((len(states), 1), 12.0)
    change_head(folder, torch.linalg.lstsq(normed, wanted).solution[:, 0], source.config.eos_token_ids[0])
    return folder


def change_head(folder: Path, row: torch.Tensor | float, token: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    head = tensors["lm_head.weight"]
    head[token] = torch.as_tensor(row, dtype=head.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_that_never_stops_fails(stopping: Path, tmp_path: Path) -> None:
    source = padded(stopping)
    material = read_material(source, Reading())
    (same,) = measure(source, [open_checkpoint(stopping)], material, CPU)
    assert same.stops.can_tell and same.stops.candidate == same.stops.source > 0.5
    assert same.failures(Limits()) == []

    mute = tmp_path / "mute"
    mute.mkdir()
    for file in stopping.iterdir():
        (mute / file.name).write_bytes(file.read_bytes())
    change_head(mute, 0.0, source.config.eos_token_ids[0])
    (silent,) = measure(source, [open_checkpoint(mute)], material, CPU)
    failures = silent.failures(Limits(max_kl=math.inf, max_linear_error=math.inf))
    assert len(failures) == 1
    assert "the stop token has probability 0.0" in failures[0] and "true ends of turns" in failures[0]


def test_streamed_layers_give_the_model_s_own_logits(tiny_checkpoint: Path) -> None:
    source, windows = padded(tiny_checkpoint), [list(range(10, 39)), list(range(40, 51)), list(range(10, 17))]
    streamed, _ = run_layers(source, [], windows, CPU)
    for index, window in enumerate(windows):
        expected = logits(source, torch.tensor(window))
        torch.testing.assert_close(streamed.logits(streamed.states(index)), expected, rtol=1e-3, atol=1e-3)


def test_a_window_that_was_not_run_has_no_states(qwen2: Path) -> None:
    decoder = StreamedDecoder(padded(qwen2), [[1, 2, 3]], CPU)
    with pytest.raises(AssertionError, match="window 1 of 1"):
        decoder.states(1)


def found(**values: float) -> Evaluation:
    sound = Evaluation(1, 9, 5.0, 5.0, 0.01, (0.005, 0.02), 0.005, 0.05, 0.1, 0.95)
    return replace(sound, **values)  # type: ignore[arg-type]


def measured(evaluation: Evaluation, errors: dict[str, float]) -> Measured:
    return Measured(evaluation, errors, Stops(4, 0.9, 0.8), "Ten tokens.", "float32", 1.0)


def test_what_is_not_a_number_fails_and_is_none_in_the_report() -> None:
    broken = measured(found(mean_kl=math.nan, ppl=math.inf), {"model.layers.0.mlp.up_proj": math.nan})
    failures = broken.failures(Limits(max_ppl_ratio=1.1))
    assert len(failures) == 3
    report = broken.to_json(Limits())
    assert report["mean_kl"] is None and report["linear_errors"] == {"model.layers.0.mlp.up_proj": None}


def test_the_worst_linears_are_named_first() -> None:
    names = [f"model.layers.{layer}.mlp.up_proj" for layer in range(9)]
    result = measured(found(), {name: 0.01 * layer for layer, name in enumerate(names)} | {"x": math.nan})
    assert [name for name, _ in result.worst] == ["x", *names[:-5:-1]]


@pytest.mark.parametrize(
    ("evaluation", "limits", "said"),
    [
        (found(mean_kl=0.6), Limits(), "mean KL 0.60000 is above 0.5"),
        (found(top1=0.7), Limits(min_top1=0.9), "top-1 agreement 0.7000 is below 0.9"),
        (found(ppl=6.0), Limits(max_ppl_ratio=1.1), "perplexity is 1.2000 of the source's, above 1.1"),
    ],
)
def test_every_limit_has_its_sentence(evaluation: Evaluation, limits: Limits, said: str) -> None:
    assert measured(evaluation, {}).failures(limits) == [said]
    assert measured(found(), {}).failures(limits) == []
