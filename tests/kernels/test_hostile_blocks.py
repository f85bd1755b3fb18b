"""Blocks of which every bit is random, scales included: as a stranger's file may have them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from qlocal.ggml_types import GgmlType, row_bytes
from qlocal.kernels import reference
from qlocal.weights import BlockWeight
from tests.kernels.test_native import DTYPES, assert_products_agree
from tests.kernels.weights import QUANTIZED_TYPES, random_affine

SHAPES = [(1, 1), (17, 3), pytest.param((70, 11), marks=pytest.mark.slow)]
"""Rows, and columns in units of 256."""


def hostile_blocks(ggml_type: GgmlType, num_rows: int, columns: int, seed: int) -> BlockWeight:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, size=(num_rows, row_bytes(ggml_type, columns)), dtype=np.uint8)
    return BlockWeight(torch.from_numpy(rows), ggml_type, columns, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_bits_multiply_as_the_reference_says(
    isa: str, ggml_type: GgmlType, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    num_rows, columns = shape[0], 256 * shape[1]
    for seed in range(3):
        weight = hostile_blocks(ggml_type, num_rows, columns, seed)
        assert_products_agree(weight, dtype, (1, 3, 17))


@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
def test_random_bits_have_scales_that_are_not_finite(ggml_type: GgmlType) -> None:
    is_finite = reference.dequantize(hostile_blocks(ggml_type, 17, 768, 0)).isfinite().all(1)
    assert bool(is_finite.any()) and not bool(is_finite.all()), "or the test above shows less than it says"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -65504.0, 6e-8, 0.0])
def test_groups_with_any_scale_multiply_as_the_reference_says(isa: str, scale: float, dtype: torch.dtype) -> None:
    weight = random_affine(33, 256, 64)
    scales = weight.scales.clone()
    scales[::3, 1] = scale
    zero_points = torch.randint(0, 17, weight.zero_points.shape, dtype=torch.uint8)
    assert_products_agree(replace(weight, scales=scales, zero_points=zero_points), dtype, (1, 3, 17))
