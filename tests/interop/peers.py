"""The interpreter of the peers' packages: transformers with GPTQModel, and llama-cpp-python.

QLOCAL_PEER_PYTHON names it (`docs/architecture.md`, interoperability). It is another environment on purpose: the peers
pin other versions of what we use, and nothing they do can touch this process.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
ANSWER_TOKENS = 32


def python() -> str:
    """Return the peers' interpreter; a test without one skips and says what it needs."""
    value = os.environ.get("QLOCAL_PEER_PYTHON")
    if not value:
        pytest.skip("needs QLOCAL_PEER_PYTHON, an interpreter with transformers, gptqmodel and llama-cpp-python")
    return value


def run(script: str, *arguments: object, timeout_s: float = 1800) -> None:
    """Run one of the scripts beside this file with the peers' interpreter."""
    command = [python(), str(HERE / script), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert result.returncode == 0, f"{script} failed: {result.stderr[-3000:]}"


def dump(folder: Path, out: Path, ids: list[int]) -> dict[str, np.ndarray]:
    """Return what transformers with GPTQModel makes of an AWQ or GPTQ folder (`peer_dump.py`)."""
    run("peer_dump.py", folder, out, *ids)
    with np.load(out) as arrays:
        return dict(arrays)


def llama_logits(gguf: Path, tokens: np.ndarray, scratch: Path) -> np.ndarray:
    """Return llama.cpp's logits, (C, S, V) float32 on a map, for tokens (C, S)."""
    np.save(scratch / "tokens.npy", tokens.astype(np.int32))
    run("llama_peer.py", "logits", gguf, scratch / "tokens.npy", scratch / "logits.npy")
    logits: np.ndarray = np.load(scratch / "logits.npy", mmap_mode="r")
    return logits


def llama_answer(gguf: Path, prompt_ids: list[int], scratch: Path) -> list[int]:
    """Return llama.cpp's greedy answer of at most ANSWER_TOKENS, the token that ends it included."""
    np.save(scratch / "prompt.npy", np.array(prompt_ids, np.int32))
    run("llama_peer.py", "complete", gguf, scratch / "prompt.npy", scratch / "answer.npy", ANSWER_TOKENS)
    answer: list[int] = np.load(scratch / "answer.npy").tolist()
    return answer
