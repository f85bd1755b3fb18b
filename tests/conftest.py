"""Shared fixtures: tiny checkpoints and the folder of stored vectors that lies beside a development checkout."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from qlocal.kernels import native
from tests import tiny

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native", type=Path, help="another build of the library to test, as scripts/sanitize makes it")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Draw the same numbers whatever ran before, on whichever worker; by module, whose fixtures draw too."""
    torch.manual_seed(zlib.crc32(item.nodeid.partition("::")[0].encode()))


@pytest.fixture(scope="session", autouse=True)
def _another_build(request: pytest.FixtureRequest) -> Iterator[None]:
    path: Path | None = request.config.getoption("--native", None)
    with pytest.MonkeyPatch.context() as patch:
        if path is not None:
            patch.setattr(native, "_find", lambda: path)
            native.load.cache_clear()
        yield
    native.load.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of reference data that is not part of the repository; tests that need it skip without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the reference data in ../shared, which is not part of the repository")
    return SHARED / "data"


@pytest.fixture(scope="session", params=["qwen2", "llama", "mixtral"])
def tiny_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BF16 folder of every architecture."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("bf16") / request.param, request.param)
