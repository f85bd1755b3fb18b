"""Measured configurations: kept for cards of a name, taken where they are sound, else the defaults."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels.triton import tuning
from qlocal.plan.scratch import CARD_ATTENTION_TOKENS

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3090")
    tuning._configs_of.cache_clear()


def test_what_was_measured_is_taken(interpreted: SimpleNamespace, card: None) -> None:
    default = interpreted.gemv.config_for(5)
    assert interpreted.gemv.config_for(5, CARD) == default
    tuning._configs_of.cache_clear()
    path = tuning.write("NVIDIA GeForce RTX 3090", {"gemv 8": {"num_warps": 8, "programs": 12}})
    assert path.name == "kernels-nvidia-geforce-rtx-3090.json"
    found = interpreted.gemv.config_for(5, CARD)
    assert (found.num_warps, found.programs, found.block_n) == (8, 12, default.block_n)
    assert interpreted.gemv.config_for(1, CARD) == interpreted.gemv.config_for(1)
    assert interpreted.gemv.config_for(5, torch.device("cpu")) == default


@pytest.mark.parametrize(
    "text", ["no json", "[1]", '{"gemv 8": 3}', '{"gemv 8": {"num_warps": -1}}', '{"gemv 8": {"block_n": 64}}']
)
def test_a_file_that_is_none_of_ours_changes_nothing(
    interpreted: SimpleNamespace, card: None, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tuning.path_of("NVIDIA GeForce RTX 3090")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert interpreted.gemv.config_for(5, CARD) == interpreted.gemv.config_for(5)
    assert "keep their defaults" in caplog.text


def test_plans_count_the_keys_that_are_unpacked_at_a_time(interpreted: SimpleNamespace) -> None:
    assert import_module("qlocal.layers.card_attention").PIECE_TOKENS == CARD_ATTENTION_TOKENS
