"""The truth of products whose tokens are rounded to 8 bits, as `triton/gemm_int8.py` multiplies prompts."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_tokens(x: Tensor, group_size: int) -> Tensor:
    """Round tokens (M, K) to 8 bits, a scale for every `group_size` columns of a token. Returns the values, f32."""
    columns = x.shape[1]
    padded = torch.nn.functional.pad(x.float(), (0, -columns % group_size))
    groups = padded.reshape(len(x), -1, group_size)
    most = groups.abs().amax(2, keepdim=True)
    # One rounding, as on a card: torch makes a product with the reciprocal of a number over a tensor.
    inverse = torch.full_like(most, 127.0) / most.clamp(min=1e-30)
    codes = torch.floor(groups * inverse + 0.5)
    return (codes * (most / 127.0)).reshape(len(x), -1)[:, :columns]
