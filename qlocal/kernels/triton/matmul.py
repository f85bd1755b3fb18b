"""The product of activations and a packed weight, by the kernel that suits the number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.kernels.triton.gemm import gemm
from qlocal.kernels.triton.gemv import MAX_TOKENS, gemv
from qlocal.kernels.triton.layout import PackedWeight


def matmul(x: Tensor, weight: PackedWeight) -> Tensor:
    """x: (M, K) bf16, f16 or f32 on the weight's device, M at least 1. Returns (M, N) float32, summed in float32."""
    x = x.contiguous() if weight.column_order is None else x[:, weight.column_order]
    # Triton launches on the current card, whichever the tensors are on.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return gemv(x, weight) if len(x) <= MAX_TOKENS else gemm(x, weight)
