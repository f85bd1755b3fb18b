"""The estimate says that it is one, and follows from its assumptions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def estimate(tmp_path: Path, *options: str) -> dict[str, Any]:
    path = tmp_path / "estimate.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_estimate.py"), *options, "--json", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("computed, not measured")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_slower_sum_over_the_cards_costs_two_of_them_a_layer(tmp_path: Path) -> None:
    quick, slow = (estimate(tmp_path, "--reduce-us", us)["rows"] for us in ("10", "40"))
    for before, after in zip(quick, slow, strict=True):
        assert abs(after["ms"] - before["ms"] - (4.8 if before["split"] == "tensor" else 0.0)) < 1e-6
    assert all(0.3 < row["share"] < 1 for row in quick)
