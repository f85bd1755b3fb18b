"""No allocation that fails while a model is loaded or a question answered gives a wrong answer, or silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preloading import compiled
from tests.quantized_folders import write_quantized

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.parametrize("faults", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_an_allocation_that_fails_is_said_and_never_makes_another_answer(faults: int, tmp_path: Path) -> None:
    model = write_quantized(tmp_path / "model", "qwen2", "awq")
    shim = compiled(HERE / "allocation_shim.c", tmp_path)
    command = [sys.executable, "-m", "tests.engine.allocations", str(model), "--faults", str(faults)]
    environment = os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert len(told) == 4
    for kind, outcomes in told.items():
        assert not [words for words in outcomes if words.startswith("WRONG")], f"{kind}: {outcomes}"
        tried = min(faults, int(kind.rpartition(" ")[2]))  # there are not more allocations
        assert sum(outcomes.values()) == tried and outcomes["said that memory ran out"] > tried / 2, kind
