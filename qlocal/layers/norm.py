"""Root mean square normalization in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(hidden_states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale every row to unit mean square, then by `weight`.

    hidden_states: (T, D) f32. weight: (D,) f32. Returns (T, D) f32.
    """
    return F.rms_norm(hidden_states, weight.shape, weight, eps)
