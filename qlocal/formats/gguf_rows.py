"""The order of q's and k's rows in GGUF files of arch llama.

llama.cpp rotates neighbouring rows there, Hugging Face rows half a head apart: model row h*hd + b*hd/2 + i is
GGUF row h*hd + 2i + b. Whole rows move, so packed rows move as bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.models.base import TensorSpec
from qlocal.weights import BlockWeight, DenseWeight


def permuted_rows(rows: int, heads: int) -> Tensor:
    """Return (N,) int64: the GGUF row of every row of the model."""
    half = rows // heads // 2
    gguf_rows = torch.arange(rows, dtype=torch.int64).view(heads, half, 2)
    return gguf_rows.transpose(1, 2).reshape(rows)


def permute_rows(data: Tensor, heads: int) -> Tensor:
    """Return `data` (N, ...) with its rows in GGUF's order."""
    half = data.shape[0] // heads // 2
    return data.reshape(heads, 2, half, *data.shape[1:]).transpose(1, 2).reshape(data.shape)


def rows_to_store(weight: DenseWeight | BlockWeight, spec: TensorSpec) -> Tensor:
    """Return what a GGUF file holds for `spec`: (N, row_bytes) uint8 of blocks, or the dense data, in file order."""
    data = weight.data if isinstance(weight, DenseWeight) else weight.blocks
    if weight.row_map is not None or not spec.permuted_heads:
        return data  # with a row map it lies in file order already
    return permute_rows(data, spec.permuted_heads)
