"""Weights of more than 2^31 values: in a file that is all holes but for a few rows."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from qlocal.ggml_types import GgmlType, row_bytes
from qlocal.kernels import native, reference
from qlocal.weights import BlockWeight, DenseWeight, Weight
from tests.kernels.weights import random_blocks

pytestmark = pytest.mark.slow
COLUMNS = 8192
NUM_ROWS = (1 << 31) // COLUMNS + 70
KNOWN = (0, (1 << 31) // COLUMNS - 1, (1 << 31) // COLUMNS, NUM_ROWS - 1)
"""Rows that are not zero: around where 32 bits end."""


def sparse(path: Path, num_bytes: int, rows: dict[int, bytes]) -> torch.Tensor:
    """Return a file's bytes, mapped: rows of the same length where they are given, zeros elsewhere."""
    with path.open("wb+") as file:
        file.truncate(num_bytes)
        for at, data in rows.items():
            file.seek(at * len(data))
            file.write(data)
        file.flush()
        return torch.frombuffer(mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_COPY), dtype=torch.uint8)


@pytest.fixture(params=[GgmlType.Q4_0, GgmlType.Q4_K, "bfloat16"], ids=str)
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Weight, Weight]:
    """A large weight, and its known rows alone."""
    if request.param == "bfloat16":
        known = torch.randn(len(KNOWN), COLUMNS).bfloat16()
        rows = {at: known[k].view(torch.uint8).numpy().tobytes() for k, at in enumerate(KNOWN)}
        mapped = sparse(tmp_path / "rows", NUM_ROWS * COLUMNS * 2, rows)
        return DenseWeight(mapped.view(torch.bfloat16).view(NUM_ROWS, COLUMNS)), DenseWeight(known)
    blocks = random_blocks(request.param, len(KNOWN), COLUMNS)
    size = row_bytes(request.param, COLUMNS)
    mapped = sparse(
        tmp_path / "rows", NUM_ROWS * size, {at: blocks.blocks[k].numpy().tobytes() for k, at in enumerate(KNOWN)}
    )
    return BlockWeight(mapped.view(NUM_ROWS, size), request.param, COLUMNS), blocks


def test_rows_behind_the_end_of_32_bits_are_read_and_multiplied(isa: str, weights: tuple[Weight, Weight]) -> None:
    large, known = weights
    values = reference.dequantize(known)
    library = native.load()
    assert isinstance(library, native.Library)
    matrix = native.make_matrix(large, library)
    for k, at in enumerate(KNOWN):
        panel = torch.empty(1, COLUMNS)
        native.decode(matrix, at, at + 1, panel)
        torch.testing.assert_close(panel[0], values[k].float(), rtol=2e-7, atol=2e-7)
    x = torch.randn(1, COLUMNS)
    found = native.matmul(x, matrix)[0]
    torch.testing.assert_close(found[list(KNOWN)], (x @ values.float().T)[0], rtol=1e-4, atol=1e-4)
    assert found.nonzero().flatten().tolist() == list(KNOWN)
