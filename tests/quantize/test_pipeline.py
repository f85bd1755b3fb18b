"""Whole runs on tiny models: what is written opens, decodes to what the methods return, and acts like the source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_rows import permute_rows
from qlocal.ggml_types import GgmlType
from qlocal.kernels.reference import dequantize
from quantize.methods.base import AffineSettings
from quantize.methods.ggml import quantize_ggml
from quantize.methods.rtn import quantize_rtn
from quantize.source import PaddedSource, open_source
from tests import tiny
from tests.quantize.conftest import Quantize, divergence

CLOSE = 0.15
"""Nats a token: plain rounding of these random models gives up to 0.13, a misplaced scale or row far above 1."""


def gguf(out: Path, kind: str) -> Path:
    return next(out.glob(f"*-{kind}.gguf"))


def test_every_result_acts_like_its_source(all_results: tuple[Path, Path]) -> None:
    source, out = all_results
    for candidate in (out / "awq", out / "gptq", gguf(out, "q4_0"), gguf(out, "q4_k_m")):
        assert divergence(source, candidate) < CLOSE, candidate.name


def test_results_are_complete(all_results: tuple[Path, Path]) -> None:
    source, out = all_results
    for name in ("awq", "gptq"):
        config = json.loads((out / name / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == name
        assert config["torch_dtype"] == "float16"
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name / file).read_bytes() == (source / file).read_bytes()
        assert "What it measured" in (out / name / "README.md").read_text()
    assert "quantize_config.json" in {path.name for path in (out / "gptq").iterdir()}
    assert gguf(out, "q4_k_m").with_suffix(".md").exists()
    defaults = [open_checkpoint(path).generation_defaults() for path in (source, gguf(out, "q4_k_m"))]
    assert defaults[0].temperature == defaults[1].temperature == 0.7 and defaults[0].top_p == defaults[1].top_p
    assert not out.with_name(out.name + ".partial").exists()


def test_reported_losses_cover_every_linear(all_results: tuple[Path, Path]) -> None:
    source, out = all_results
    linears = {s.spec.module for s in open_source(source).tensors.values() if s.spec.is_quantized}
    for name in ("awq", "gptq"):
        report = json.loads((out / name / "quantization_report.json").read_text())
        assert set(report["losses"]) == linears
        assert all(0 < loss < 0.05 for loss in report["losses"].values())


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_rounded_folder_decodes_to_what_the_method_returns(tiny_checkpoint: Path, method: str, run: Quantize) -> None:
    out = open_checkpoint(run(tiny_checkpoint, "--format", method, "--rtn", "--group-size", "64"))
    source = open_source(tiny_checkpoint)
    settings = AffineSettings(64, method == "gptq", min_zero=1 if method == "gptq" else 0)
    for name, stored in source.tensors.items():
        original = source.read(name).data.float()
        if stored.spec.is_quantized:
            assert torch.equal(dequantize(out.read(name)), dequantize(quantize_rtn(original, settings).weight))
        else:
            assert torch.equal(out.read(name).data, original.half())


def test_gguf_decodes_to_what_the_method_returns(tiny_checkpoint: Path, run: Quantize) -> None:
    out = open_checkpoint(run(tiny_checkpoint, "--format", "gguf", "--no-imatrix", "--type", "q4_k_m", out="m.gguf"))
    source = open_source(tiny_checkpoint)
    for name, stored in out.tensors.items():
        original = source.read(name).data.float()
        if stored.ggml_type in (GgmlType.F32, None):
            assert torch.equal(dequantize(out.read(name)), original)
            continue
        heads = stored.spec.permuted_heads
        rows = permute_rows(original, heads).contiguous() if heads else original
        expected = dequantize(quantize_ggml(rows, stored.ggml_type, None).weight)
        found = dequantize(out.read(name))
        assert torch.equal(permute_rows(found, heads) if heads else found, expected)


@pytest.mark.parametrize(
    "arguments",
    [("awq", "--sym"), ("gptq", "--asym"), ("gptq", "--desc-act"), ("gptq", "--desc-act", "--asym")],
    ids=lambda a: "-".join(a),
)
def test_every_variant_loads_and_acts_like_its_source(qwen2: Path, arguments: tuple[str, ...], run: Quantize) -> None:
    out = run(qwen2, "--format", *arguments, "--group-size", "32")
    assert divergence(qwen2, out) < CLOSE
    quantization = json.loads((out / "config.json").read_text())["quantization_config"]
    assert quantization["group_size"] == 32
    assert quantization.get("desc_act", False) == ("--desc-act" in arguments)


def test_calibrated_results_are_nearer_than_rounded_ones(qwen2: Path, run: Quantize) -> None:
    arguments = ("--format", "awq,gptq")
    calibrated, rounded = run(qwen2, *arguments), run(qwen2, *arguments, "--rtn", out="rounded")
    for name in ("awq", "gptq"):
        assert divergence(qwen2, calibrated / name) < divergence(qwen2, rounded / name)


def test_padded_ffn_computes_the_same(tmp_path: Path, run: Quantize) -> None:
    source = tiny.write_checkpoint(tmp_path / "odd", "llama", {"intermediate_size": 352})
    out = run(source, "--format", "awq,gptq,gguf", "--type", "q4_k_m")
    for candidate in (out / "awq", out / "gptq", gguf(out, "q4_k_m")):
        opened = open_checkpoint(candidate)
        assert opened.config.intermediate_size == 512
        for name, stored in opened.tensors.items():
            values = dequantize(opened.read(name)) if len(stored.shape) == 2 else None
            if name.endswith("down_proj.weight") and values is not None:
                assert (values[:, 352:] == 0).all()
            if name.endswith(("gate_proj.weight", "up_proj.weight")) and values is not None:
                assert (values[352:] == 0).all()
        assert divergence(source, candidate) < CLOSE


def test_padding_a_source_leaves_its_values_alone(tmp_path: Path) -> None:
    opened = open_source(tiny.write_checkpoint(tmp_path / "m", "qwen2", {"intermediate_size": 288}))
    from dataclasses import replace

    padded = PaddedSource(opened, replace(opened.config, intermediate_size=512))
    down = padded.read("model.layers.0.mlp.down_proj.weight").data
    assert down.shape == (128, 512)
    assert torch.equal(down[:, :288], opened.read("model.layers.0.mlp.down_proj.weight").data)
    assert (down[:, 288:] == 0).all()


def test_shards_are_divided_and_indexed(tmp_path: Path, run: Quantize) -> None:
    source = tiny.write_checkpoint(tmp_path / "wide", "qwen2", {"vocab_size": 4096})
    whole = open_checkpoint(run(source, "--format", "gptq", "--rtn"))
    sharded = open_checkpoint(run(source, "--format", "gptq", "--rtn", "--shard-size", "1100KB", out="sharded"))
    shards = [path.name for path in sharded.files if path.suffix == ".safetensors"]
    assert shards == [f"model-{k}-of-00003.safetensors" for k in ("00001", "00002", "00003")]
    for name in whole.tensors:
        assert torch.equal(dequantize(sharded.read(name)), dequantize(whole.read(name)))


def test_tied_heads_stay_tied(tmp_path: Path, run: Quantize) -> None:
    source = tiny.write_checkpoint(tmp_path / "tied", "qwen2", {"tie_word_embeddings": True})
    out = run(source, "--format", "awq,gguf", "--type", "q4_k_m")
    for candidate in (out / "awq", gguf(out, "q4_k_m")):
        opened = open_checkpoint(candidate)
        assert "lm_head.weight" not in opened.tensors
        assert divergence(source, candidate) < CLOSE
    embedding = open_checkpoint(gguf(out, "q4_k_m")).tensors["model.embed_tokens.weight"]
    assert embedding.storage == "q8_0"  # 128 columns are no multiple of 256


def test_existing_result_is_replaced_only_when_asked(qwen2: Path, run: Quantize, capsys) -> None:
    out = run(qwen2, "--format", "awq", "--rtn")
    before = (out / "model.safetensors").stat().st_mtime_ns
    from quantize.cli import main

    assert main([str(qwen2), "--format", "awq", "--rtn", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    run(qwen2, "--format", "awq", "--overwrite")
    assert (out / "model.safetensors").stat().st_mtime_ns != before


def test_folder_of_something_else_is_never_overwritten(qwen2: Path, tmp_path: Path, capsys) -> None:
    from quantize.cli import main

    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("x")
    code = main([str(qwen2), "--format", "awq", "--rtn", "--overwrite", "--out", str(tmp_path / "precious")])
    assert code == 2
    assert "is no quantized checkpoint" in capsys.readouterr().err
    assert (tmp_path / "precious" / "thesis.tex").exists()
