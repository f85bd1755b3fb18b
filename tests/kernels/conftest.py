"""The instruction sets to test, one after another, whichever this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qlocal.kernels import native


@pytest.fixture(params=[isa.name.lower() for isa in native.Isa])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Force an instruction set; skips one that this CPU has not, or everything where nothing was built."""
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    native.load.cache_clear()
    library = native.load()
    if isinstance(library, native.Absent):
        pytest.skip(library.reason)
    if native.Isa[request.param.upper()].needs not in library.features:
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


@pytest.fixture
def fresh_load() -> Iterator[None]:
    """Let the test load the library anew, and the next one again."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()
