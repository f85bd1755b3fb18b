"""Which dtype the inputs of matmuls have on a device. bf16 is never emulated."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

DTYPES = ("bfloat16", "float32")


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for matmul inputs when `dtype` (bfloat16 or float32) is asked for.

    A CPU without bf16 instructions computes in float32: slower to load, never less exact.
    """
    assert dtype in DTYPES, f"dtype is bfloat16 or float32, not {dtype!r}; the command line and the server check it"
    if dtype == "bfloat16" and (device.type != "cpu" or cpu_has_bf16()):
        return torch.bfloat16
    return torch.float32


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux: say no, which is always right
        return False
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
