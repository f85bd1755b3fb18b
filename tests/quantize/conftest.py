"""Running `quantize` in this process on tiny models, and reading back what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.attention import causal
from qlocal.layers.loader import load_embedding, load_head, load_layer
from qlocal.layers.norm import rms_norm
from qlocal.layers.rotary import Rotary
from quantize.cli import main
from tests import tiny

Quantize = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Quantize:
    """Call `quantize SOURCE --out OUT ARGUMENTS...` without the gate, which has tests of its own; returns OUT."""

    def call(source: Path, *arguments: str, out: str = "out") -> Path:
        place = tmp_path / out
        size = ["--samples", "8", "--seq-len", "128"]
        code = main([str(source), "--out", str(place), *size, "--no-verify", *arguments])
        assert code == 0
        return place

    return call


@pytest.fixture(scope="session")
def all_results(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source and results (AWQ, GPTQ, q4_0, q4_k_m) of every architecture."""
    out = tmp_path_factory.mktemp("quantized") / tiny_checkpoint.name
    arguments = ["--format", "awq,gptq,gguf", "--type", "q4_0,q4_k_m", "--samples", "8", "--seq-len", "128"]
    arguments.append("--no-verify")
    assert main([str(tiny_checkpoint), "--out", str(out), *arguments]) == 0
    return tiny_checkpoint, out


def logits(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """Return (T, V) f32 logits in float32 arithmetic, a layer at a time."""
    states = load_embedding(checkpoint, "cpu")(ids)
    rotation = Rotary(checkpoint.config).at(torch.arange(len(ids)))
    for index in range(checkpoint.config.num_hidden_layers):
        layer = load_layer(checkpoint, index, "cpu", "float32", "reference")
        states = layer.forward(states, rotation, causal([len(ids)]))
    norm, head = load_head(checkpoint, "cpu", "float32", "reference")
    return head(rms_norm(states, norm, checkpoint.config.rms_norm_eps))[0]


def divergence(source: Path, candidate: Path) -> float:
    """Return the mean KL in nats a token over a fixed sequence of ids."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 300, (200,), generator=generator)
    p = logits(open_checkpoint(source), ids).log_softmax(-1)
    q = logits(open_checkpoint(candidate), ids).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", "qwen2")
