"""Which dtype the inputs of matmuls have."""

from __future__ import annotations

import torch

_TORCH = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def compute_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype for matmul inputs when `dtype` (bfloat16 or float32) is asked for.

    bfloat16 allows roundings of that size and demands none: on the CPU, quantized weights are multiplied in 16-bit
    fixed point (kernels/dispatch.py), and nothing is emulated where the CPU has no bf16 instructions.
    """
    assert dtype in _TORCH, f"dtype is bfloat16 or float32, not {dtype!r}; the command line and the server check it"
    return _TORCH[dtype]
