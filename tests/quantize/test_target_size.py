"""`--target-size` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlocal.formats.checkpoint import open_checkpoint
from quantize import pipeline
from quantize.cli import main
from tests.quantize.conftest import Quantize, divergence

SLACK = 0.02
"""Share of the file that the last step of the choice may leave unused: tensors of tiny models are few."""


def size_of(run: Quantize, source: Path, kind: str) -> int:
    return run(source, "--format", "gguf", "--type", kind, out=f"{kind}.gguf").stat().st_size


def test_the_file_is_as_large_as_asked_and_better_than_the_same_types_everywhere(
    run: Quantize, tiny_checkpoint: Path
) -> None:
    size = size_of(run, tiny_checkpoint, "q5_0")
    out = run(tiny_checkpoint, "--format", "gguf", "--target-size", str(size), out="sized.gguf")
    assert (1 - SLACK) * size <= out.stat().st_size <= size
    types = {stored.storage for stored in open_checkpoint(out).tensors.values() if len(stored.spec.shape) > 1}
    assert len(types) > 1
    assert divergence(tiny_checkpoint, out) < 1.1 * divergence(tiny_checkpoint, out.with_name("q5_0.gguf"))
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["result"] == "measured"
    assert any("expected to add a mean KL" in note for note in report["notes"])


def test_a_file_that_cannot_be_so_small_is_refused_before_anything_is_measured(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--format", "gguf", "--target-size", "10KB", "--out", str(tmp_path / "small.gguf")]
    assert main([str(tiny_checkpoint), *arguments]) == 2
    assert "--target-size is 10,000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_plan_alone_refuses_such_a_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["qwen2-72b-instruct", "--format", "gguf", "--out", str(tmp_path / "m.gguf"), "--dry-run"]
    assert main([*arguments, "--target-size", "30GB"]) == 2
    assert "--target-size is 30,000,000,000" in capsys.readouterr().err
    assert main([*arguments, "--target-size", "45GB"]) == 0
    assert "Types are chosen by what each tensor is worth" in capsys.readouterr().out


def test_what_was_measured_is_not_measured_again(
    run: Quantize, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = size_of(run, tiny_checkpoint, "q5_0")
    arguments = ("--format", "gguf", "--target-size", str(size))
    whole = run(tiny_checkpoint, *arguments, out="whole.gguf").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline._Run, "solve", stop)
        with pytest.raises(AssertionError):
            run(tiny_checkpoint, *arguments, out="stopped.gguf")
    monkeypatch.setattr(pipeline, "measure", stop)
    assert run(tiny_checkpoint, *arguments, out="stopped.gguf").read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "awq"], "belongs to --format gguf"),
        (["--format", "gguf", "--rtn"], "--rtn leaves these out"),
        (["--format", "gguf", "--no-imatrix"], "--no-imatrix leaves these out"),
        (["--format", "gguf", "--type", "q4_0"], "not allowed with"),
    ],
)
def test_what_contradicts_it_is_refused(
    arguments: list[str], words: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(tiny_checkpoint), "--target-size", "1GB", "--out", str(tmp_path / "o.gguf"), *arguments]
    try:
        code = main(call)
    except SystemExit as exit:
        code = int(exit.code or 0)
    assert code == 2
    assert words in capsys.readouterr().err
