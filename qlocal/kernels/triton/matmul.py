"""The product of activations and a weight on a card, by the kernel that suits the number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.kernels.dispatch import PreparedWeight
from qlocal.kernels.triton.products import products


def matmul(x: Tensor, weight: PreparedWeight) -> Tensor:
    """x: (M, K) bf16, f16 or f32 on the weight's device, M at least 1. Returns (M, N) float32, summed in float32."""
    # Triton launches on the current card, whichever the tensors are on.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        sums = products(x, [weight])
        return sums[0] if len(sums) == 1 else sums.sum(0)
