"""Random neutral weights of every type and odd shapes, for the tests of the kernels."""

from __future__ import annotations

import numpy as np
import torch

from qlocal.ggml_types import FLOAT_TYPES, LAYOUTS, GgmlType, row_bytes
from qlocal.weights import AffineWeight, BlockWeight

QUANTIZED_TYPES = sorted(set(LAYOUTS) - FLOAT_TYPES)

# Byte offsets of the float16 fields in a block; everything else may be any bits.
_HALVES = {
    GgmlType.Q4_1: (0, 2),
    GgmlType.Q5_1: (0, 2),
    GgmlType.Q2_K: (80, 82),
    GgmlType.Q3_K: (108,),
    GgmlType.Q4_K: (0, 2),
    GgmlType.Q5_K: (0, 2),
    GgmlType.Q6_K: (208,),
}


def random_blocks(
    ggml_type: GgmlType, num_rows: int, columns: int, seed: int = 0, row_map: bool = False
) -> BlockWeight:
    """Return blocks of random bits whose float16 scales are finite and about 0.01, of both signs."""
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[ggml_type]
    total = num_rows * columns // layout.block_size
    blocks = rng.integers(0, 256, size=(total, layout.block_bytes), dtype=np.uint8)
    for at in _HALVES.get(ggml_type, (0,)):
        blocks[:, at : at + 2] = rng.normal(0, 0.01, size=(total, 1)).astype(np.float16).view(np.uint8)
    rows = torch.from_numpy(blocks.reshape(num_rows, row_bytes(ggml_type, columns)))
    order = torch.from_numpy(rng.permutation(num_rows)) if row_map else None
    return BlockWeight(rows, ggml_type, columns, order)


def random_affine(
    num_rows: int,
    columns: int,
    group_size: int,
    seed: int = 0,
    act_order: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> AffineWeight:
    """Return random codes, zero points over the whole range, and scales about 0.01."""
    generator = torch.Generator().manual_seed(seed)
    num_groups = columns // group_size
    g_idx = None
    if act_order:
        g_idx = (torch.randperm(columns, generator=generator) // group_size).to(torch.int32)
    return AffineWeight(
        codes=torch.randint(0, 256, (num_rows, columns // 2), generator=generator, dtype=torch.uint8),
        scales=(torch.rand((num_rows, num_groups), generator=generator) * 0.02 + 1e-4).to(scale_dtype),
        zero_points=torch.randint(0, 16, (num_rows, num_groups), generator=generator, dtype=torch.uint8),
        group_size=group_size,
        g_idx=g_idx,
    )
