"""What a backend cannot do, and interpreters that are none or lack the package: a sentence and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quantize.backends import base, interpreter
from quantize.cli import main
from tests import tiny
from tests.quantize.backends.fake_peer import FakePeer

NO_COUNTERPART = [
    (["--cluster", "local"], "--cluster has no counterpart in GPTQModel"),
    (["--rtn"], "--rtn has no counterpart in GPTQModel"),
    (["--type", "q4_0"], "--type has no counterpart in GPTQModel"),
    (["--no-imatrix"], "--no-imatrix has no counterpart in GPTQModel"),
    (["--no-hessian"], "--no-hessian has no counterpart in GPTQModel"),
    (["--max-memory", "100GB"], "--max-memory has no counterpart in GPTQModel"),
    (["--quantize-head"], "--quantize-head has no counterpart in GPTQModel"),
    (["--pad-ffn", "512"], "--pad-ffn 512 has no counterpart in GPTQModel"),
    (["--dry-run"], "--dry-run plans what qlocal's own quantizer writes"),
    (["--format", "awq", "--desc-act"], "--desc-act belongs to --format gptq"),
    (["--format", "gguf", "--out", "m.gguf"], "--format gguf: GPTQModel makes awq and gptq alone. Leave out --backend"),
    (["--backend", "autoawq"], "--format gptq: AutoAWQ makes awq alone. Choose --backend gptqmodel"),
    (["--backend", "autoawq", "--format", "awq", "--sym"], "--sym has no counterpart in AutoAWQ"),
    (["--backend", "auto-gptq"], "--backend 'auto-gptq' is unknown. Known: native, gptqmodel, autoawq"),
    (["--backend", "native", "--backend-python", sys.executable], "--backend-python belongs to --backend gptqmodel"),
]


@pytest.mark.parametrize(("arguments", "text"), NO_COUNTERPART, ids=lambda value: "")
def test_options_without_a_counterpart_are_refused_by_name(
    arguments: list[str], text: str, qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--out", str(tmp_path / "out"), "--format", "gptq", "--backend", "gptqmodel"]
    assert main([str(qwen2), *usual, *arguments]) == 2
    said = capsys.readouterr().err
    assert text in said and len(said.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def refused(source: Path, out: Path, *arguments: str) -> None:
    assert main([str(source), "--out", str(out), "--format", "awq", *arguments]) == 2
    assert not out.exists() and not out.with_name(out.name + ".partial").exists()


def test_interpreters_that_are_none_are_named(qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    for path, wrong in (
        (tmp_path / "absent", "does not exist"),
        (text, "is not executable"),
        (Path("/bin/true"), "is no Python interpreter"),
        (tmp_path, "does not exist"),
    ):
        refused(qwen2, tmp_path / "out", "--backend", "gptqmodel", "--backend-python", str(path))
        said = capsys.readouterr().err
        assert f"--backend-python {path}: {wrong}" in said and "Traceback" not in said
    text.chmod(0o755)
    refused(qwen2, tmp_path / "out", "--backend", "gptqmodel", "--backend-python", str(text))
    assert "is no Python interpreter" in capsys.readouterr().err


def test_a_missing_or_old_package_is_told_with_the_install_command(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = FakePeer(tmp_path / "old", {"gptqmodel": "2.2.0"})
    refused(qwen2, tmp_path / "out", "--backend", "gptqmodel", "--backend-python", str(old.python))
    said = capsys.readouterr().err
    assert "has GPTQModel 2.2.0, at least 7.7 is needed" in said and "pip install 'qlocal[interop]'" in said
    refused(qwen2, tmp_path / "out", "--backend", "autoawq", "--backend-python", str(old.python))
    assert f"--backend autoawq: {old.python} has no package autoawq" in capsys.readouterr().err
    monkeypatch.setattr(interpreter.sys, "executable", str(old.python))
    refused(qwen2, tmp_path / "out", "--backend", "autoawq")
    said = capsys.readouterr().err
    assert "--backend autoawq: this interpreter has no package autoawq" in said
    assert "pip install 'qlocal[interop]'" in said


def test_what_a_package_reads_with_old_transformers_alone_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixtral = tiny.write_checkpoint(tmp_path / "mixtral", "mixtral")
    new = FakePeer(tmp_path / "new", {"autoawq": "0.2.9", "transformers": "5.20.0"})
    refused(mixtral, tmp_path / "out", "--backend", "autoawq", "--backend-python", str(new.python))
    said = capsys.readouterr().err
    assert f"AutoAWQ reads mixtral with transformers 4 alone, and {new.python} has 5.20.0" in said
    assert "--backend-python" in said and "pip install autoawq==0.2.9 transformers==4.51.3" in said


def test_every_option_is_followed_or_refused() -> None:
    """A new option of our own quantizer is refused until somebody says that backends follow it."""
    from dataclasses import fields

    from quantize.options import Options

    names = {field.name for field in fields(Options)}
    assert names >= base._UNDERSTOOD and names >= set(base._FLAGS)
