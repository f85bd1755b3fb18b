"""Libraries that inject faults: small C files, compiled when a test needs them and preloaded into the program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def compiled(source: Path, folder: Path) -> Path:
    """Compile a C file and return the library in `folder`. The test is skipped where that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler for the library that injects faults")
    path = folder / f"{source.stem}.so"
    flags = ["-O2", "-Wall", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, "-o", path, source, "-ldl"], check=True)
    return path
