"""Which dtype the inputs of matmuls have on a device."""

from __future__ import annotations

import torch

from qlocal.devices import matmul_dtype

_TORCH = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype for matmul inputs when `dtype` (bfloat16 or float32) is asked for.

    A CPU without bf16 instructions computes in float32: slower, never less exact.
    """
    assert dtype in _TORCH, f"dtype is bfloat16 or float32, not {dtype!r}; the command line and the server check it"
    return _TORCH[matmul_dtype(dtype, device.type)]
