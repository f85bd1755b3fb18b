"""Token embedding: rows of a neutral weight, dequantized as they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.kernels import dispatch
from qlocal.weights import Weight


class Embedding:
    """The table stays as it lies in the file (on the map where the device is the CPU): a token reads one row."""

    def __init__(self, weight: Weight, device: torch.device) -> None:
        self._weight = weight
        self.device = device

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return the rows of `input_ids` (T,) int64 as (T, D) f32."""
        return dispatch.embedding_rows(self._weight, input_ids.to(self.device))
