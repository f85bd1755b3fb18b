"""A tensor split over cards adds up through host memory, inside of recorded steps, and gives one device's text."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.engine.card_ranks import NUM_TOKENS

ROOT = Path(__file__).resolve().parents[2]
NUM_LAYERS = 2


def run_ranks(model: Path, store: Path, ranks: int) -> dict[str, Any]:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    command = [sys.executable, "-m", "tests.engine.card_ranks", str(model), str(store)]
    started = [
        subprocess.Popen([*command, str(rank), str(ranks)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks
    seen: dict[str, Any] = json.loads(outputs[0])
    return seen


@pytest.mark.parametrize("architecture", ["qwen2", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_ranks_on_cards_give_the_logits_of_one_device(architecture: str, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    model = tiny.write_checkpoint(tmp_path / "m", architecture, sizes)
    seen = run_ranks(model, tmp_path / "store", 2)
    assert seen["is_same_text"] and seen["apart"] < 2e-3
    # Every step is short enough: two sums a layer each, and none by torch.distributed.
    assert seen["all_reduces"] == 0
    steps = 2 + NUM_TOKENS
    assert seen["exchanges"] == 2 * NUM_LAYERS * steps
    # The second half of the prompt is as long as the first, and the second token answered comes as the first one did.
    assert seen["replayed"] == (0 if architecture == "mixtral" else 1 + NUM_TOKENS - 1)
    assert seen["long_apart"] < 5e-3  # attention of so many tokens is in float16
    # Two steps; of a dense model in two halves each.
    halves = 1 if architecture == "mixtral" else 2
    assert seen["long_all_reduces"] == 2 * NUM_LAYERS * 2 * halves
    # While one half is computed the other's sum is under way, but for the beginning and the end of a step.
    a_step = [1, *[2, 1] * (2 * 2 * NUM_LAYERS - 1), 0] if halves == 2 else [1, 0] * 2 * NUM_LAYERS
    assert seen["under_way"] == 2 * a_step
