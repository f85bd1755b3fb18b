"""Three Ray workers on this machine, one of them killed half way: the bytes are those of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import tiny
from tests.quantize.test_resume import ARGUMENTS, HANGS_AFTER_S, content, finish

pytest.importorskip("ray", reason="needs the extra `cluster`: pip install 'qlocal[cluster]'")
pytestmark = pytest.mark.slow


def busy_worker(parent: int) -> psutil.Process | None:
    """Return a worker below process `parent` that solves a job now."""
    for process in psutil.Process(parent).children(recursive=True):
        if process.is_running() and any("ray::solve_there" in word for word in process.cmdline()):
            return process
    return None


def test_a_killed_worker_of_three_changes_no_byte(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "m", "qwen2", {"num_hidden_layers": 8})
    command = [sys.executable, "-m", "quantize.cli", str(source), "--out", str(tmp_path / "cluster"), *ARGUMENTS]
    process = subprocess.Popen(
        [*command, "--no-verify", "--cluster", "local:3"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    lines = [process.stderr.readline()]
    while lines[-1] and not lines[-1].startswith("layer"):  # the first finished layer: half way for the others
        lines.append(process.stderr.readline())
    deadline = time.monotonic() + HANGS_AFTER_S
    while (worker := busy_worker(process.pid)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker is not None, "".join(lines)
    worker.send_signal(signal.SIGKILL)
    _, rest = process.communicate(timeout=HANGS_AFTER_S)
    assert process.returncode == 0, "".join(lines) + rest
    assert "died; another one takes it" in rest
    assert "3 workers take the layers, on machines: 1." in "".join(lines)
    finish(source, tmp_path / "local")
    assert content(tmp_path / "cluster") == content(tmp_path / "local")
