"""Quantizing on a card: the same results as on the CPU, and nothing that lies on the wrong side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qlocal.errors import PlanError, UsageError
from quantize import arithmetic, pipeline
from quantize.device import choose_device, passed_over
from quantize.methods import feedback
from tests import tiny
from tests.quantize.conftest import Quantize, divergence
from tests.quantize.pretend_card import NAME, OnCard, pretended_card


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(pipeline, "choose_device", lambda name, needed_bytes: NAME)
    monkeypatch.setattr(pipeline, "arithmetic", lambda device: arithmetic.arithmetic("cpu"))
    # Tensors with a class of their own cannot be made in inference mode.
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode))
    with pretended_card() as name:
        yield name


def test_the_card_of_these_tests_refuses_to_mix() -> None:
    with pretended_card() as name:
        there = torch.ones(3, 3, device=name)
        assert isinstance(there, OnCard) and (there @ there).device.type == name
        there[1:].add_(1.0)
        assert there.cpu().sum() == 15.0
        with pytest.raises(AssertionError, match="host memory"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="not the host's"):
            there.data_ptr()


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free memory by card; two cards."""
    free = {"cuda:0": 1 << 30, "cuda:1": 10 << 30}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], 24 << 30))
    return free


def test_auto_takes_the_first_card_with_room(free_bytes: dict[str, int]) -> None:
    assert choose_device("auto", 1 << 30) == "cuda:0"
    assert choose_device("auto", 2 << 30) == "cuda:1"
    assert choose_device("auto", 20 << 30) == "cpu" and passed_over("auto", "cpu")
    free_bytes.clear()
    assert choose_device("auto", 1) == "cpu" and not passed_over("auto", "cpu")


def test_a_named_card_without_room_is_refused_with_both_numbers(free_bytes: dict[str, int]) -> None:
    assert choose_device("cuda:1", 2 << 30) == "cuda:1" and choose_device("cuda", 0) == "cuda:0"
    with pytest.raises(PlanError, match=r"--device cuda:0: 2\.1 GB are needed there, 1\.1 GB are free"):
        choose_device("cuda:0", 2 << 30)
    with pytest.raises(UsageError, match="--device cuda:2: torch sees 2"):
        choose_device("cuda:2", 0)


@pytest.mark.parametrize("architecture", ["qwen2", pytest.param("mixtral", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("out", "arguments"),
    [
        ("awq", ("--format", "awq")),
        ("gptq", ("--format", "gptq")),
        ("ordered", ("--format", "gptq", "--desc-act", "--quantize-head")),
        ("q4_0.gguf", ("--format", "gguf", "--type", "q4_0")),
    ],
)
def test_layers_are_run_and_solved_on_the_card(
    architecture: str,
    out: str,
    arguments: tuple[str, ...],
    tmp_path: Path,
    run: Quantize,
    card: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices = set()

    def solve(problem: feedback.Problem, grid: feedback.AnyGrid) -> feedback.Solved:
        devices.add(problem.targets_NB.device.type)
        return in_one_place(problem, grid)

    in_one_place = feedback.solve
    monkeypatch.setattr(feedback, "solve", solve)
    source = tiny.write_checkpoint(tmp_path / "m", architecture)
    made = run(source, *arguments, out=out)
    assert devices == {card}
    assert divergence(source, made) < 0.2
