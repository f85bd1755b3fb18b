"""Positions beyond the original context: our logits are transformers', in float32, whatever the scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.attention import causal
from qlocal.layers.loader import load_model
from qlocal.plan import make_plan
from tests import tiny
from tests.interop import peers
from tests.memory_checkpoint import random_ids

pytestmark = pytest.mark.real
ORIGINAL = 256
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0}


def yarn(factor: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": ORIGINAL, **more}


def ours(folder: Path, ids: list[int], context: int) -> torch.Tensor:
    checkpoint = open_checkpoint(folder)
    plan = make_plan(checkpoint, ["cpu"], context, slots=1, dtype="float32")
    with torch.inference_mode():
        decoder = load_model(checkpoint, plan)
        attend = causal([len(ids)])
        return decoder.logits(decoder.forward(torch.tensor(ids), torch.arange(len(ids)), lambda _: attend))


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    [
        ("qwen2", yarn(4.0)),
        ("qwen2", yarn(2.5)),
        ("qwen2", yarn(4.0, beta_fast=16.0, beta_slow=2.0)),
        ("qwen2", yarn(4.0, attention_factor=1.3)),
        ("llama", {**LLAMA3, "original_max_position_embeddings": ORIGINAL}),
        ("llama", LINEAR),
    ],
    ids=["yarn 4", "yarn 2.5", "yarn with betas", "yarn with its attention factor", "llama3", "linear"],
)
def test_logits_beyond_the_original_context_equal_those_of_transformers(
    tmp_path: Path, model_type: str, scaling: dict[str, Any]
) -> None:
    overrides = {"max_position_embeddings": 1024, "rope_scaling": scaling, "rope_theta": 1e6}
    folder = tiny.write_checkpoint(tmp_path / "model", model_type, overrides)
    # As long as the factor reaches, so that it is not made smaller.
    length = round(ORIGINAL * scaling["factor"]) if scaling["rope_type"] == "yarn" else 1024
    ids = random_ids(320, length)
    np.save(tmp_path / "tokens.npy", np.array(ids))
    peers.run("peer_logits.py", folder, tmp_path / "tokens.npy", tmp_path / "logits.npy")
    expected = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    found = ours(folder, ids, length)
    assert float((found - expected)[ORIGINAL:].abs().max()) < 1e-4
    assert float((found - expected).abs().max()) < 1e-4


def test_a_smaller_context_is_what_transformers_computes_with_the_smaller_factor(tmp_path: Path) -> None:
    """A file with factor 4, loaded for twice its original context, equals a file with factor 2."""
    folders = {
        factor: tiny.write_checkpoint(
            tmp_path / f"{factor}", overrides={"max_position_embeddings": 1024, "rope_scaling": yarn(factor)}
        )
        for factor in (2.0, 4.0)
    }
    ids = random_ids(320, 2 * ORIGINAL)
    np.save(tmp_path / "tokens.npy", np.array(ids))
    peers.run("peer_logits.py", folders[2.0], tmp_path / "tokens.npy", tmp_path / "logits.npy")
    expected = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    assert float((ours(folders[4.0], ids, 2 * ORIGINAL) - expected).abs().max()) < 1e-4
