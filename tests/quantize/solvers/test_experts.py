"""Experts that calibration hardly reached, or never, are rounded, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels.reference import dequantize
from quantize.solvers import folder
from tests import tiny
from tests.quantize.conftest import Quantize, divergence

RESULTS = {"awq": ("awq",), "gptq": ("gptq",), "gguf": ("gguf", "--type", "q4_0")}
NEVER_CHOSEN = "model.layers.1.block_sparse_moe.experts.4."


@pytest.fixture
def starved(tmp_path: Path) -> Path:
    """A mixture whose last expert of five no token is sent to: there are always two with higher logits."""
    source = tiny.write_checkpoint(tmp_path / "m", "mixtral", {"num_local_experts": 5})
    tensors = load_file(source / "model.safetensors")
    router = tensors["model.layers.1.block_sparse_moe.gate.weight"]
    router[1], router[2], router[3], router[4] = router[0], -router[0], -router[0], 0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    return source


@pytest.mark.parametrize("kind", RESULTS)
def test_an_expert_that_no_token_reaches_is_rounded_and_reported(kind: str, starved: Path, run: Quantize) -> None:
    name = "out.gguf" if kind == "gguf" else "out"
    out = run(starved, "--format", *RESULTS[kind], out=name)
    report = out.with_suffix(".json") if kind == "gguf" else out / "quantization_report.json"
    rounded = {note for note in json.loads(report.read_text())["notes"] if "rounded" in note}
    assert rounded == {f"{NEVER_CHOSEN}{w}: rounded, calibration gave it 0 tokens." for w in ("w1", "w2", "w3")}
    given, made = (dequantize(open_checkpoint(path).read(f"{NEVER_CHOSEN}w1.weight")) for path in (starved, out))
    if kind == "gguf":  # the columns of others are multiplied by what the norm is divided by
        assert (made - given).square().sum() < 0.03 * given.square().sum()
    assert divergence(starved, out) < 0.2


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_experts_with_few_tokens_are_rounded_and_reported(
    method: str, tmp_path: Path, run: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.write_checkpoint(tmp_path / "m", "mixtral")
    monkeypatch.setattr(folder, "MIN_EXPERT_TOKENS", 10**9)
    out = run(source, "--format", method)
    notes = json.loads((out / "quantization_report.json").read_text())["notes"]
    assert any("experts.3.w2: rounded, calibration gave it" in note for note in notes)
    assert divergence(source, out) < 0.2


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_router_is_scaled_with_the_experts(method: str, tmp_path: Path, run: Quantize) -> None:
    source = open_checkpoint(tiny.write_checkpoint(tmp_path / "m", "mixtral"))
    out = open_checkpoint(run(tmp_path / "m", "--format", method))
    norm, router = "model.layers.0.post_attention_layernorm.weight", "model.layers.0.block_sparse_moe.gate.weight"
    scale = dequantize(source.read(norm)) / dequantize(out.read(norm))
    assert (scale - 1).abs().max() > 0.01
    torch.testing.assert_close(
        dequantize(out.read(router)) / scale, dequantize(source.read(router)), rtol=2e-3, atol=1e-5
    )


def test_biases_of_queries_and_keys_are_not_scaled(qwen2: Path, run: Quantize) -> None:
    source, out = open_checkpoint(qwen2), open_checkpoint(run(qwen2, "--format", "awq"))
    for name in ("q_proj", "k_proj", "v_proj"):
        bias = f"model.layers.0.self_attn.{name}.bias"
        assert torch.equal(dequantize(out.read(bias)), dequantize(source.read(bias)).half().float())


def test_scale_of_attention_outputs_goes_into_values_and_their_bias(tmp_path: Path, run: Quantize) -> None:
    source = tiny.write_checkpoint(tmp_path / "m", "qwen2", {"num_key_value_heads": 4})
    out = run(source, "--format", "awq")
    bias = "model.layers.0.self_attn.v_proj.bias"
    before, after = (dequantize(open_checkpoint(path).read(bias)) for path in (source, out))
    assert not torch.allclose(before, after, rtol=0.01)
    assert divergence(source, out) < 0.15
