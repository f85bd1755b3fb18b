"""The kernels compiled for cards that are not here: they fit, and keep everything in registers.

In a process of its own, for in this one they may be interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
# Shared memory that a program can have on sm_86, sm_89 and sm_120; sm_90 has more (CUDA C Programming Guide).
SHARED_BYTES = 99 * 1024


def compiled(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    report = tmp_path / "report.json"
    script = ROOT / "benchmarks" / "gpu_compile_report.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    command = [sys.executable, str(script), *options, "--json", str(report)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(report.read_text())
    return rows


def expect_to_fit(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["shared_bytes"] > SHARED_BYTES] == []
    assert [row for row in rows if row["spilled_bytes"]] == []


def test_the_kernels_of_a_type_fit_a_3090(tmp_path: Path) -> None:
    rows = compiled(tmp_path, "--arch", "86", "--what", "q5_k", "--kernel", "gemv", "gemm")
    assert len(rows) == 6 and {row["name"] for row in rows} == {"gemv", "gemm"}
    expect_to_fit(rows)


def test_prompts_in_8_bits_take_int8_instructions(tmp_path: Path) -> None:
    rows = compiled(tmp_path, "--arch", "86", "--kernel", "gemm_int8", "--what", "affine g128", "--tokens", "512")
    assert len(rows) == 1 and rows[0]["int8_products"] > 0
    expect_to_fit(rows)


def test_what_stands_between_the_products_fits_a_3090(tmp_path: Path) -> None:
    rows = compiled(tmp_path, "--arch", "86", "--what", "14:2 heads of 64, q8,q4")
    assert len(rows) == 7 and {row["name"] for row in rows} == {"rotary_store", "attend", "join"}
    expect_to_fit(rows)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["86", "89", "90", "120"])
def test_every_kernel_fits_every_card(tmp_path: Path, architecture: str) -> None:
    rows = compiled(tmp_path, "--arch", architecture)
    assert len(rows) == 164
    assert all((row["int8_products"] > 0) == (row["name"] == "gemm_int8") for row in rows)
    expect_to_fit(rows)
