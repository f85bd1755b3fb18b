"""The check of a card: rehearsed on the CPU, refused without a card, and content with few packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ABSENT = ("gguf", "textual", "msgpack", "sentencepiece", "jinja2", "starlette", "pydantic", "httpx", "platformdirs")
ABSENT += ("psutil", "pynvml", "rich", "pytest", "llguidance")
GUARD = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(name + " is not on a machine for gpu-check")
sys.meta_path.insert(0, Absent())
from benchmarks.gpu_check.__main__ import main
sys.exit(main())
"""


def check(*options: str) -> subprocess.CompletedProcess[str]:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", GUARD, *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_without_a_card_it_says_so_and_ends_with_2() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    result = check()
    assert result.returncode == 2
    assert result.stderr == "gpu-check needs an NVIDIA card, and torch finds none here; --rehearse runs it without.\n"


def test_an_unknown_section_is_refused() -> None:
    result = check("--sections", "values,none")
    assert result.returncode == 2 and "no section 'none'" in result.stderr


def test_sections_of_several_calls_fill_one_file(tmp_path: Path) -> None:
    sections = ["few", "many", "quantize", "peers"]
    for section in sections:
        result = check("--rehearse", "--sections", section, "--out", str(tmp_path))
        assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("gpu-rehearsal-*.json")
    assert list(json.loads(path.read_text())["sections"]) == sections
    text = path.with_suffix(".md").read_text()
    assert "## Products of a few tokens" in text and "## Products of many tokens" in text
    assert "## GPTQ of a layer of the 72B" in text


@pytest.mark.slow
def test_the_whole_check_is_rehearsed(tmp_path: Path) -> None:
    result = check("--rehearse", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = tmp_path.glob("gpu-rehearsal-*.json")
    sections = json.loads(path.read_text())["sections"]
    assert list(sections) == ["values", "few", "many", "decoding", "tune", "quantize", "exchange", "peers", "models"]
    assert all(row[3] for row in sections["values"]["rows"]) and not sections["values"]["failed"]


@pytest.mark.gpu
def test_values_are_right_on_a_card(tmp_path: Path) -> None:
    result = check("--sections", "values", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
