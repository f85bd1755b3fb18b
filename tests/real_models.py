"""Published models for tests marked `real`: BF16 folders and GGUF files in the folder that QLOCAL_REAL_MODELS names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def real_model(name: str) -> Path:
    """Return the folder or file of that name, or with `-bf16` behind it, as the tool that fetches them calls folders;
    a test that lacks it skips and says so."""
    folder = Path(os.environ.get("QLOCAL_REAL_MODELS", "/nonexistent"))
    for path in (folder / name, folder / f"{name}-bf16"):
        if path.exists():
            return path
    pytest.skip(f"needs {name} in the folder QLOCAL_REAL_MODELS")
