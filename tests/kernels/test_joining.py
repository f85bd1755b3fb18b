"""Weights with one input, written into the strips of one."""

from __future__ import annotations

import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch, joining
from qlocal.weights import Weight
from tests.kernels.weights import random_affine, random_blocks

COLUMNS = 256


def parts(kind: str, rows: tuple[int, ...]) -> list[Weight]:
    if kind == "affine":
        return [random_affine(n, COLUMNS, 64, act_order=False, scale_dtype=torch.float16) for n in rows]
    return [random_blocks(GgmlType.Q4_K, n, COLUMNS, row_map=kind == "permuted blocks") for n in rows]


@pytest.mark.parametrize("kind", ["affine", "blocks", "permuted blocks"])
@pytest.mark.parametrize("rows", [(48, 16, 32), (48, 16, 9), (40, 16, 16)], ids=str)
def test_strips_are_those_of_the_joined_copy(isa: str, kind: str, rows: tuple[int, ...]) -> None:
    weights = parts(kind, rows)
    together = dispatch.prepare_joined(weights, "cpu", torch.bfloat16)
    copied = dispatch.prepare(joining.join(weights), "cpu", torch.bfloat16)
    assert together.shape == copied.shape == (sum(rows), COLUMNS)
    assert together.matrix is not None and copied.matrix is not None
    assert torch.equal(together.matrix.data, copied.matrix.data)
