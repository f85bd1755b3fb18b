"""One weight of every kind the Triton kernels know, of odd shapes, for their tests."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels import reference
from qlocal.kernels.dispatch import PreparedWeight
from qlocal.kernels.triton.layout import PackedWeight, pack
from qlocal.weights import AffineWeight, BlockWeight
from tests.kernels.weights import random_affine, random_blocks

BLOCK_TYPES = [GgmlType.Q4_0, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K]

# Name -> rows, columns (the last chunk of the small groups is not full), and what is special about the weight.
KINDS: dict[str, Callable[[], AffineWeight | BlockWeight]] = {
    "affine_g32": lambda: random_affine(37, 352, 32),
    "affine_g64": lambda: random_affine(70, 320, 64, scale_dtype=torch.bfloat16),
    "affine_g128": lambda: random_affine(129, 384, 128),
    "affine_g128_act_order": lambda: random_affine(65, 384, 128, act_order=True),
    "affine_g32_act_order": lambda: random_affine(31, 288, 32, act_order=True),
    "q4_0": lambda: random_blocks(GgmlType.Q4_0, 67, 416, row_map=True),
    "q8_0": lambda: random_blocks(GgmlType.Q8_0, 65, 224),
    "q4_k": lambda: random_blocks(GgmlType.Q4_K, 65, 512, row_map=True),
    "q5_k": lambda: random_blocks(GgmlType.Q5_K, 33, 512),
    "q6_k": lambda: random_blocks(GgmlType.Q6_K, 37, 512, row_map=True),
}


def make(name: str) -> tuple[AffineWeight | BlockWeight, PackedWeight]:
    """Return the neutral weight and the packed one."""
    weight = KINDS[name]()
    return weight, pack(weight, "cpu")


def prepared(packed: PackedWeight) -> PreparedWeight:
    """Return a packed weight as the layers hold it."""
    return PreparedWeight(packed.shape, torch.bfloat16, torch.device("cpu"), packed=packed)


def activations(num_tokens: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (M, K) of `dtype`, the same for the same arguments."""
    return torch.randn(num_tokens, columns, generator=torch.Generator().manual_seed(num_tokens)).to(dtype)


def expected(x: torch.Tensor, weight: AffineWeight | BlockWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the product (M, N) float32 with the weight's values rounded to `dtype` first."""
    return x.float() @ reference.dequantize(weight).to(dtype).float().T


def relative_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the norm of the difference in parts of the truth's."""
    return float((result - truth).norm() / truth.norm())
