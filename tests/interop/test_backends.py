"""`quantize --backend` with the peers' own packages: what they make of a tiny model passes our gate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.hf_checkpoint import HfCheckpoint
from quantize.cli import main
from quantize.report.files import read_report
from tests import tiny
from tests.interop import peers

pytestmark = pytest.mark.real

RUNS = {
    "gptqmodel-gptq": ("qwen2", ["--backend", "gptqmodel", "--format", "gptq"]),
    "gptqmodel-desc-act": ("llama", ["--backend", "gptqmodel", "--format", "gptq", "--desc-act", "--asym"]),
    "gptqmodel-awq": ("llama", ["--backend", "gptqmodel", "--format", "awq"]),
    "gptqmodel-moe": ("mixtral", ["--backend", "gptqmodel", "--format", "gptq"]),
    "autoawq": ("llama", ["--backend", "autoawq", "--format", "awq"]),
}


def python_with(package: str) -> str:
    """Return the peers' interpreter; a test whose package it lacks skips."""
    python = peers.python()
    has = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    if subprocess.run([python, "-c", has], check=False).returncode:
        pytest.skip(f"QLOCAL_PEER_PYTHON has no {package}")
    return python


@pytest.mark.parametrize("name", RUNS)
def test_a_peers_result_passes_the_gate_and_is_what_was_asked_for(name: str, tmp_path: Path) -> None:
    model_type, arguments = RUNS[name]
    python = python_with("awq" if name == "autoawq" else "gptqmodel")
    source, out = tiny.write_checkpoint(tmp_path / "bf16", model_type), tmp_path / "out"
    size = ["--samples", "8", "--seq-len", "64", "--group-size", "32"]
    assert main([str(source), "--out", str(out), "--backend-python", python, *arguments, *size]) == 0
    made = open_checkpoint(out)
    assert isinstance(made, HfCheckpoint) and made.quantization is not None
    settings = made.quantization
    assert (settings.method, settings.group_size) == (arguments[3], 32)
    assert settings.symmetric is (name in ("gptqmodel-gptq", "gptqmodel-moe"))
    assert settings.desc_act is (name == "gptqmodel-desc-act")
    report = read_report(out)
    assert report is not None and report["verify"]["passed"] and report["verify"]["mean_kl"] < 0.1
    assert report["backend"]["name"] == arguments[1] and arguments[1] in report["backend"]["versions"]
    assert str(tmp_path) not in (out / "config.json").read_text()
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
