"""Killed at any moment and started again, a run ends with the same bytes; with other arguments it is refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize import pipeline
from quantize.cli import main
from quantize.state import locked
from tests import tiny

ARGUMENTS = [
    "--format",
    "awq,gptq,gguf",
    "--type",
    "q4_k_m",
    "--samples",
    "4",
    "--seq-len",
    "64",
    "--shard-size",
    "1100KB",
]
HANGS_AFTER_S = 900
"""A run takes two seconds on a machine of its own; on a busy one it has taken more than a hundred."""
REPORTS = {"README.md", "quantization_report.json"}


def content(out: Path) -> dict[str, str]:
    """Return the hashes of all files but the reports, which hold timings."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name not in REPORTS and p.suffix not in (".md", ".html")]
    wanted = [p for p in files if not (p.suffix == ".json" and p.with_suffix(".gguf").exists())]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in wanted}


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "quantize.cli", str(source), "--out", str(out), *ARGUMENTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(source: Path, out: Path) -> None:
    process = start(source, out)
    _, errors = process.communicate(timeout=HANGS_AFTER_S)
    assert process.returncode == 0, errors.decode()


def kill_after(source: Path, out: Path, seconds: float) -> None:
    process = start(source, out)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("source") / "m", "qwen2", {"num_hidden_layers": 3})


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("uninterrupted") / "whole"
    finish(source, out)
    return content(out)


@pytest.mark.slow
def test_killed_at_twenty_moments_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    finish(source, tmp_path / "whole")
    duration = time.monotonic() - started
    expected, moments = content(tmp_path / "whole"), random.Random(5)
    for number in range(20):
        out = tmp_path / f"killed-{number}"
        kill_after(source, out, moments.uniform(0.2, 1.0) * duration)
        if not out.exists() or out.with_name(out.name + ".partial").exists():
            finish(source, out)
        assert content(out) == expected


@pytest.mark.parametrize("after", ["capture", "write", "publish", "hidden", "journal", "assemble", "rename"])
def test_stopped_between_any_two_steps_gives_the_same_bytes(
    source: Path, uninterrupted: dict[str, str], tmp_path: Path, after: str
) -> None:
    """The quick form of the test above: the process ends, without any tidying up, right after each kind of step."""
    process = subprocess.run(
        [sys.executable, "-c", _STOPPING, after, str(source), "--out", str(tmp_path / "out"), *ARGUMENTS],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 77, process.stderr.decode()
    if after != "rename":
        assert not (tmp_path / "out").exists()
    finish(source, tmp_path / "out")
    assert content(tmp_path / "out") == uninterrupted
    assert not (tmp_path / "out.partial").exists()


_STOPPING = """
import os, sys
from quantize import assemble, pipeline, placing, state, cli, unit_solver
from quantize.calibration import hidden_states
def stop_after(owner, name, calls):
    original, count = getattr(owner, name), [0]
    def wrapped(*arguments, **named):
        result = original(*arguments, **named)
        count[0] += 1
        if count[0] == calls:
            os._exit(77)
        return result
    setattr(owner, name, wrapped)
after = sys.argv.pop(1)
owner, name, calls = {
    "capture": (pipeline._Run, "_capture", 2),
    "write": (unit_solver, "write_unit", 5),
    "publish": (hidden_states.HiddenStates, "publish", 2),
    "hidden": (state.Journal, "add_hidden", 2),
    "journal": (state.Journal, "finish", 2),
    "assemble": (assemble.Assembly, "write", 2),
    "rename": (placing.Placing, "put", 1),
}[after]
stop_after(owner, name, calls)
sys.exit(cli.main(sys.argv[1:]))
"""


def interrupted(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run until the first unit is finished, then stop; returns the arguments of that run."""
    arguments = [str(source), "--out", str(out), "--format", "gptq", "--samples", "4", "--seq-len", "64"]
    original = pipeline._Run._finish_unit
    with monkeypatch.context() as patch:
        patch.setattr(pipeline._Run, "_finish_unit", lambda run, *solved: _then_stop(original, run, *solved))
        assert main(arguments) == 130
    return arguments


def _then_stop(original, run, *solved) -> None:  # type: ignore[no-untyped-def]
    original(run, *solved)
    raise KeyboardInterrupt


def test_other_arguments_are_refused_and_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = interrupted(source, tmp_path / "out", monkeypatch)
    assert main([*arguments, "--group-size", "32"]) == 2
    assert "group_size was 128, is 32" in capsys.readouterr().err
    (tmp_path / "own.txt").write_text("Something else to read. " * 200)
    assert main([*arguments, "--calibration", str(tmp_path / "own.txt")]) == 2
    assert "calibration was" in capsys.readouterr().err
    assert main(arguments) == 0


def test_changed_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny.write_checkpoint(tmp_path / "m", "qwen2")
    arguments = interrupted(source, tmp_path / "out", monkeypatch)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert main(arguments) == 2
    assert "source model.safetensors was" in capsys.readouterr().err


def test_damaged_work_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = interrupted(source, tmp_path / "out", monkeypatch)
    file = tmp_path / "out.partial" / "work" / "gptq-0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(arguments) == 2
    assert "gptq-0.safetensors: is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_threads_of_the_first_run_are_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(source, tmp_path / "out", monkeypatch)
    journal = json.loads((tmp_path / "out.partial" / "work" / "journal.json").read_text())
    assert journal["threads"] == torch.get_num_threads()


def test_two_runs_never_share_a_work_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = interrupted(source, tmp_path / "out", monkeypatch)
    with locked(tmp_path / "out.partial" / "work"):
        assert main(arguments) == 2
    assert "another quantize is at work there" in capsys.readouterr().err
    assert main(arguments) == 0
