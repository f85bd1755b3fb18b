"""Token embedding: rows of a neutral weight, dequantized as they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.kernels import dispatch, native
from qlocal.weights import AffineWeight, Weight

_FEW_ROWS = 8
"""Up to so many, rows are decoded natively, one by one; the reference starts many small operations for a block."""


class Embedding:
    """The table stays as it lies in the file (on the map where the device is the CPU): a token reads one row."""

    def __init__(self, weight: Weight, device: torch.device) -> None:
        self._weight = weight
        self.device = device
        self._matrix = _native_rows(weight, device)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Return the rows of `input_ids` (T,) int64 as (T, D) f32."""
        if self._matrix is None or len(input_ids) > _FEW_ROWS:
            return dispatch.embedding_rows(self._weight, input_ids.to(self.device))
        rows = torch.empty((len(input_ids), self._matrix.shape[1]))
        for row, token_id in zip(rows, input_ids.tolist(), strict=True):
            native.decode(self._matrix, token_id, token_id + 1, row[None])
        return rows


def _native_rows(weight: Weight, device: torch.device) -> native.NativeMatrix | None:
    """Describe the table to the library where that takes no copy of it."""
    library = native.load()
    if device.type != "cpu" or isinstance(weight, AffineWeight) or isinstance(library, native.Absent):
        return None
    return native.make_matrix(weight, library) if native.unsupported(weight) is None else None
