"""No fault of the disk, and no end of the process at any call, gives a wrong result or loses what was finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preloading import compiled

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(HERE / "fault_shim.c", tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(
    ("scenario", "every"),
    [
        ("rounding", 50),
        pytest.param("rounding", 1, marks=pytest.mark.slow),
        pytest.param("calibrated", 1, marks=pytest.mark.slow),
    ],
)
def test_a_fault_at_any_call_leaves_nothing_wrong_and_the_same_command_ends_well(
    shim: Path, scenario: str, every: int
) -> None:
    command = [sys.executable, "-m", "tests.quantize.faults", "--every", str(every), "--scenario", scenario]
    environment = os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert all(tally["calls"] > 100 for tally in told["results"].values())
