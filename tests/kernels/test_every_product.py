"""The whole matrix of products in fixed point: storages x shapes x tokens x threads, on maps at odd addresses.

`test_native.py` has the tolerances and takes samples of this one at every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels import native
from qlocal.weights import BlockWeight
from tests.kernels.test_native import assert_products_agree
from tests.kernels.weights import QUANTIZED_TYPES, random_affine, random_blocks

pytestmark = pytest.mark.slow

TOKENS = (*range(1, 10), 16, 17, 33, 130)
ROWS = (1, 15, 16, 17, 33, 70)
SMALL_BLOCKS = (GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0, GgmlType.IQ4_NL)


@pytest.fixture(params=[1, 2, 3, 8])
def threads(request: pytest.FixtureRequest, isa: str) -> Iterator[int]:
    native.set_threads(request.param)
    yield request.param
    native.set_threads(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
def test_blocks(isa: str, threads: int, ggml_type: GgmlType, dtype: torch.dtype) -> None:
    for num_rows in ROWS:
        for columns in (32, 96, 544) if ggml_type in SMALL_BLOCKS else (256, 768):
            assert_products_agree(
                at_odd_address(random_blocks(ggml_type, num_rows, columns, row_map=True)), dtype, TOKENS
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_groups(isa: str, threads: int, group_size: int, scale_dtype: torch.dtype, dtype: torch.dtype) -> None:
    for num_rows in ROWS:
        for act_order in (False, True):
            weight = random_affine(num_rows, 5 * group_size, group_size, act_order=act_order, scale_dtype=scale_dtype)
            assert_products_agree(weight, dtype, TOKENS)


def at_odd_address(weight: BlockWeight) -> BlockWeight:
    """Return the same blocks one byte behind an even address, as a mapped file may have them."""
    memory = torch.empty(weight.blocks.numel() + 1, dtype=torch.uint8)
    blocks = memory[1:].view(weight.blocks.shape)
    return replace(weight, blocks=blocks.copy_(weight.blocks))
