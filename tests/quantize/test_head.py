"""`--quantize-head`: the head of AWQ and GPTQ folders in 4 bits, untied, solved in strips, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels.reference import dequantize
from quantize.cli import main
from quantize.methods.base import AffineSettings
from quantize.methods.rtn import quantize_rtn
from quantize.solvers import head
from quantize.source import open_source
from tests import tiny
from tests.quantize.conftest import Quantize, divergence
from tests.quantize.test_pipeline import CLOSE, gguf

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def report(folder: Path) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = json.loads((folder / "quantization_report.json").read_text())
    return values


@pytest.fixture(params=[False, True], ids=["own", "tied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "source", "qwen2", {"tie_word_embeddings": request.param})


def test_head_becomes_codes_of_its_own_beside_the_16_bit_embedding(source: Path, run: Quantize) -> None:
    out = run(source, "--format", "awq,gptq,gguf", "--type", "q4_0", "--quantize-head")
    was_tied = open_source(source).config.tie_word_embeddings
    for name in ("awq", "gptq"):
        config = json.loads((out / name / "config.json").read_text())
        assert config["tie_word_embeddings"] is False and config["quantization_config"]["lm_head"] is True
        opened = open_checkpoint(out / name)
        assert opened.tensors[HEAD].storage == name and opened.tensors[EMBEDDING].storage == "f16"
        assert torch.equal(opened.read(EMBEDDING).data, open_source(source).read(EMBEDDING).data.half())
        assert divergence(source, out / name) < CLOSE
        assert 0 < report(out / name)["losses"]["lm_head"] < 0.05
        assert any("tensor of its own" in note for note in report(out / name)["notes"]) == was_tied
    assert open_checkpoint(gguf(out, "q4_0")).config.tie_word_embeddings == was_tied


def test_error_feedback_brings_the_head_nearer_than_rounding(source: Path, run: Quantize) -> None:
    arguments = ("--format", "gptq", "--quantize-head", "--group-size", "32")
    solved, rounded = run(source, *arguments), run(source, *arguments, "--rtn", out="rounded")
    original = open_source(source)
    values = original.read(HEAD if HEAD in original.tensors else EMBEDDING).data.float()
    expected = dequantize(quantize_rtn(values, AffineSettings(32, True, min_zero=1)).weight)
    assert torch.equal(dequantize(open_checkpoint(rounded).read(HEAD)), expected)
    assert report(rounded)["losses"]["lm_head"] == pytest.approx(
        float((expected - values).square().sum() / values.square().sum()), rel=1e-4
    )
    assert report(solved)["losses"]["lm_head"] < report(rounded)["losses"]["lm_head"]


@pytest.mark.parametrize("arguments", [("awq", "--sym"), ("gptq", "--desc-act"), ("gptq", "--asym")], ids="-".join)
def test_strips_of_rows_are_solved_as_the_whole(
    arguments: tuple[str, ...], source: Path, run: Quantize, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(source, "--format", *arguments, "--quantize-head")
    monkeypatch.setattr(head, "HEAD_STRIP_ELEMENTS", 128 * 100)  # strips of 96 rows
    strips = run(source, "--format", *arguments, "--quantize-head", out="strips")
    assert (whole / "model.safetensors").read_bytes() == (strips / "model.safetensors").read_bytes()
    losses = [report(folder)["losses"]["lm_head"] for folder in (whole, strips)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_dry_run_counts_the_bytes_that_are_written(
    source: Path, run: Quantize, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--format", "gptq", "--quantize-head", "--rtn", "--no-verify"]
    assert main([str(source), "--out", "/nowhere/out", *arguments, "--dry-run", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["results"]
    opened = open_checkpoint(run(source, *arguments))
    assert planned["tensor_bytes"] == sum(stored.num_bytes for stored in opened.tensors.values())
    assert {t["name"]: t["type"] for t in planned["tensors"]}[HEAD] == "gptq"


def test_the_gate_holds_the_head_against_the_source(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--format", "awq", "--quantize-head", "--samples", "8", "--seq-len", "128"]
    assert main([str(source), "--out", str(out), *arguments]) == 0
    errors = json.loads((out / "quantization_report.json").read_text())["verify"]["linear_errors"]
    assert 0 < errors["lm_head"] < 0.05 and errors["model.embed_tokens"] == 0


def test_head_that_cannot_be_packed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny.write_checkpoint(tmp_path / "odd", "qwen2", {"vocab_size": 323})
    assert main([str(source), "--format", "awq", "--rtn", "--quantize-head", "--out", str(tmp_path / "out")]) == 2
    assert "323 outputs cannot be packed" in capsys.readouterr().err


def test_option_needs_a_format_that_it_belongs_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["x", "--format", "gguf", "--quantize-head", "--out", str(tmp_path / "o.gguf")]) == 2
    assert "--quantize-head belongs to --format awq and gptq" in capsys.readouterr().err


def test_gguf_without_a_matrix_is_the_same_whatever_is_made_beside_it(qwen2: Path, run: Quantize) -> None:
    alone = run(qwen2, "--format", "gguf", "--type", "q4_0", "--no-imatrix", out="alone.gguf")
    beside = run(qwen2, "--format", "awq,gguf", "--type", "q4_0", "--no-imatrix", "--quantize-head", out="beside")
    for name, stored in open_checkpoint(alone).tensors.items():
        values = [dequantize(open_checkpoint(file).read(name)) for file in (alone, gguf(beside, "q4_0"))]
        assert torch.equal(*values), stored.storage
