"""What cannot fit is refused from the headers of a large checkpoint, in less than a second and without torch."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plan.folders import write_large_headers


@pytest.fixture(scope="module", params=["awq", "q4_k_m"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 72B checkpoint of 34 or 43 GiB, of which the disk holds the headers alone."""
    path = write_large_headers(tmp_path_factory.mktemp("large") / request.param, request.param)
    assert sum(f.stat().st_blocks for f in path.parent.rglob("*") if f.is_file()) * 512 < 8 << 20
    return path


def qlocal(home: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command as the shell does; return what it said, and the processor time of it and its children."""
    environment = {**os.environ, "QLOCAL_HOME": str(home), "QLOCAL_CONFIG": str(home)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "qlocal.cli", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_plan_that_does_not_fit_takes_less_than_a_second(large: Path, tmp_path: Path) -> None:
    result, seconds = qlocal(tmp_path, "plan", str(large), "--gpus", "12GiB,8GiB", "--offload", "none")
    assert result.returncode == 2 and seconds < 1.0
    assert "needs" in result.stderr and "on cuda:0 and cuda:1" in result.stderr
    assert "19.00 GiB can be used of 20.00 GiB that are free" in result.stderr
    assert "It fits with --offload layers" in result.stderr
    assert "no fit" in result.stdout


def test_a_plan_that_fits_takes_less_than_a_second(large: Path, tmp_path: Path) -> None:
    result, seconds = qlocal(tmp_path, "plan", str(large), "--gpus", "24GiB,24GiB,24GiB", "--json")
    assert result.returncode == 0 and seconds < 1.0
    found = json.loads(result.stdout)
    assert found["fits"] and found["error"] is None
    assert [part["device"] for part in found["plan"]["devices"]] == ["cuda:0", "cuda:1", "cuda:2"]
    assert found["largest_context"]["layer"]["f16"] == found["plan"]["max_context"] == 32768


def test_loading_is_refused_before_an_engine_starts(large: Path, tmp_path: Path) -> None:
    """Of `run`, the server is another process: what took long would be the engine's torch."""
    try:
        result, seconds = qlocal(tmp_path, "run", str(large), "hello", "--max-memory", "4GiB")
        log = (tmp_path / "run" / "server.log").read_text(encoding="utf-8")
    finally:
        qlocal(tmp_path, "stop")
    assert result.returncode == 2 and seconds < 1.0
    assert "needs" in result.stderr and "3.68 GiB can be used of 4.00 GiB that --max-memory allows" in result.stderr
    assert "cannot be loaded" in log and "engine is given up" not in log
