"""Reading a prompt takes as much memory beside the cache for 32,768 tokens as for 2,048."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qlocal.kernels import native


@pytest.mark.skipif(isinstance(native.load(), native.Absent), reason="needs the native kernels")
@pytest.mark.parametrize("kv", ["f16", "q4"])
def test_memory_beside_the_cache_is_the_same_for_a_short_and_a_long_prompt(kv: str) -> None:
    command = [sys.executable, "-m", "tests.engine.prefill_memory", kv]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 0 < found["2048"] < 64 << 20
    assert found["32768"] <= found["2048"] + (2 << 20), "a large page more, for whatever the allocator does"
