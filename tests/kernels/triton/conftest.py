"""The Triton kernels on the CPU, by Triton's interpreter.

It is chosen where a kernel is decorated, and asked for again while one runs. So the kernels are imported by the first
test that needs them, and the variable is set for the time of such a test only."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

_MODULES = (
    "gemv",
    "gemm",
    "gemm_int8",
    "dense",
    "products",
    "matmul",
    "add_norm",
    "silu_mul",
    "kv_encode",
    "rotary_store",
    "attention",
)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of qlocal.kernels.triton, their kernels interpreted."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    modules = {name: import_module(f"qlocal.kernels.triton.{name}") for name in _MODULES}
    modules["key_angles"] = import_module("qlocal.layers.key_angles")
    if "Interpreted" not in type(modules["gemv"].gemv_kernel).__name__:
        pytest.skip("triton was imported before these tests, without its interpreter")
    return SimpleNamespace(**modules)
