"""What must start quickly, or run apart from the engine, imports no torch: looked at in fresh processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = [
    "qlocal.cli",
    "qlocal.chat.app",
    "qlocal.server.serve",
    "qlocal.server.preflight",
    "qlocal.guard.worker",
    "qlocal.launch",
    "qlocal.plan",
    "qlocal.models",
    "qlocal.catalog",
    "qlocal.formats.checkpoint",
    "qlocal.commands.chat",
    "qlocal.commands.plan",
    "qlocal.commands.run",
    "qlocal.commands.serve",
    "quantize.cli",
    "quantize.recipe",
]
HEAVY = ("torch", "triton", "transformers", "tokenizers", "sentencepiece", "gguf")
LIST_LOADED = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"


def loaded_by(module: str) -> set[str]:
    command = [sys.executable, "-W", "ignore", "-c", LIST_LOADED, module]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_module_starts_without_heavy_libraries(module: str) -> None:
    assert loaded_by(module) & set(HEAVY) == set()


def test_chat_knows_neither_engine_nor_quantizer() -> None:
    loaded = loaded_by("qlocal.chat.app")
    foreign = ("qlocal.engine", "qlocal.layers", "qlocal.kernels", "qlocal.server", "quantize", "pydantic", "uvicorn")
    assert [name for name in loaded if name.startswith(foreign)] == []


def test_server_does_not_import_the_engine() -> None:
    loaded = loaded_by("qlocal.server.serve")
    assert [name for name in loaded if name.startswith(("qlocal.engine", "qlocal.layers", "qlocal.kernels"))] == []
