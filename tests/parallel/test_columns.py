"""Columns that a rank holds multiply their own inputs, and what it holds beside them multiplies zeros."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qlocal.kernels.affine_layout import has_even_groups
from qlocal.kernels.reference import dequantize
from qlocal.parallel.columns import in_even_groups, inputs_of, widened
from qlocal.weights import AffineWeight
from tests.quantized_folders import rounded


def test_scattered_columns_come_into_even_groups_and_give_the_same_product() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = rounded(torch.randn((48, 512), generator=generator), 128, seed=1)
    assert weight.g_idx is not None
    part = AffineWeight(
        weight.codes[:, 60:188].contiguous(), weight.scales, weight.zero_points, 128, weight.g_idx[120:376]
    )
    assert not has_even_groups(part)
    held = in_even_groups(part)
    assert held.inputs is not None and isinstance(held.weight, AffineWeight)
    assert has_even_groups(held.weight) and held.weight.group_size == 32 and held.weight.g_idx is None
    x = torch.randn((5, 256), generator=generator, dtype=torch.float64)
    expected = x @ dequantize(part).double().T
    found = F.pad(x, (0, 1))[:, held.inputs] @ dequantize(held.weight).double().T
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_range_is_widened_to_whole_blocks_and_the_rest_gets_zeros() -> None:
    assert widened(range(96, 192), 256) == range(256)
    assert widened(range(256, 512), 256) == range(256, 512)
    assert inputs_of(range(256, 512), range(256, 512)) is None
    assert inputs_of(range(2, 4), range(6)).tolist() == [2, 2, 0, 1, 2, 2]  # type: ignore[union-attr]
