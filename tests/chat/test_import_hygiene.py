"""The chat opens at once: what its process loads before the first paint is looked at, not believed."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = (
    "torch",
    "numpy",
    "triton",
    "quantize",
    "qlocal.engine",
    "qlocal.layers",
    "qlocal.kernels",
    "qlocal.server",
)
LATE = ("httpx", "pygments.lexers", "openai", "pydantic", "starlette")


def loaded_by(module: str) -> set[str]:
    script = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def offenders(module: str, names: tuple[str, ...]) -> set[str]:
    return {found for found in loaded_by(module) if any(found == n or found.startswith(n + ".") for n in names)}


def test_opening_the_chat_loads_neither_the_engine_nor_the_http_client() -> None:
    assert offenders("qlocal.chat.app", FORBIDDEN + LATE) == set()


@pytest.mark.parametrize("module", ["qlocal.chat.link", "qlocal.chat.client"])
def test_talking_to_a_server_loads_no_engine(module: str) -> None:
    assert offenders(module, FORBIDDEN) == set()
