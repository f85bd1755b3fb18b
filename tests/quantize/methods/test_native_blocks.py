"""The native fits against the numpy ones they stand for: to the bit, for all types, ways, storages and odd data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType
from qlocal.kernels import native
from qlocal.kernels.quantize_blocks import BLOCK_TYPES, Fit, quantize_blocks
from quantize.methods import ggml
from tests.kernels.conftest import isa  # noqa: F401  the fixture: each instruction set in turn

COLUMNS, ROWS = 768, 37  # not a whole number of lanes
DATA = ("gaussian", "heavy-tailed", "few values", "tiny", "positive", "zeros")


@pytest.fixture
def library(isa: str) -> Iterator[native.Library]:  # noqa: F811
    loaded = native.load()
    assert isinstance(loaded, native.Library)
    yield loaded


def rows_of(kind: str, seed: int) -> Tensor:
    """Return (ROWS, COLUMNS) f32; "tiny" reaches down to denormals, "zeros" holds both zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, COLUMNS, generator=generator)
    spread = torch.rand(ROWS, COLUMNS, generator=generator)
    if kind == "heavy-tailed":
        return x / (spread + 0.01)
    if kind == "few values":
        return (x * 2).round() / 2
    if kind == "tiny":
        return x * 10.0 ** torch.randint(-44, 3, (ROWS, 1), generator=generator).float()
    if kind == "positive":
        return x.abs() + 0.1
    if kind == "zeros":
        x = torch.where(spread < 0.97, torch.copysign(torch.zeros(()), x), x)
        x[::3], x[1::3, :512] = 0.0, -0.0
    return x


def importance_of(seed: int) -> Tensor:
    return torch.rand(COLUMNS, generator=torch.Generator().manual_seed(seed)).pow(4) + 1e-4


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("fit", Fit, ids=lambda f: f.name)
@pytest.mark.parametrize("ggml_type", sorted(BLOCK_TYPES), ids=lambda t: t.name)
def test_blocks_are_those_of_the_reference(library: native.Library, ggml_type: GgmlType, fit: Fit, kind: str) -> None:
    x_NK = rows_of(kind, seed=int(ggml_type))
    importance = importance_of(1) if fit is Fit.WEIGHTED else None
    blocks, errors = quantize_blocks(library, x_NK, ggml_type, fit, importance, importance)
    with np.errstate(over="ignore", under="ignore"):
        expected, expected_errors = ggml._quantize_strips(x_NK, ggml_type, fit, importance, importance)
    assert torch.equal(blocks, expected)
    torch.testing.assert_close(errors, expected_errors, rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ggml_type", sorted(BLOCK_TYPES), ids=lambda t: t.name)
def test_stored_halves_are_widened_on_the_way(library: native.Library, ggml_type: GgmlType, dtype: torch.dtype) -> None:
    stored = rows_of("gaussian", seed=2).to(dtype)
    importance = importance_of(3)
    blocks, _ = quantize_blocks(library, stored, ggml_type, Fit.WEIGHTED, importance)
    assert torch.equal(blocks, quantize_blocks(library, stored.float(), ggml_type, Fit.WEIGHTED, importance)[0])


@pytest.mark.parametrize("ggml_type", sorted(BLOCK_TYPES), ids=lambda t: t.name)
def test_every_number_of_rows_and_any_stride_gives_the_same_blocks(
    library: native.Library, ggml_type: GgmlType
) -> None:
    x_NK = rows_of("gaussian", seed=4)
    importance = importance_of(5)[:512]
    whole, errors = quantize_blocks(library, x_NK[:, :512], ggml_type, Fit.WEIGHTED, importance)
    for rows in (1, 7, 8, 9, 16, 17, 31):
        part, part_errors = quantize_blocks(
            library, x_NK[:rows, :512].contiguous(), ggml_type, Fit.WEIGHTED, importance
        )
        assert torch.equal(part, whole[:rows]) and torch.equal(part_errors, errors[:rows])


def test_blocks_and_errors_do_not_depend_on_the_number_of_threads(library: native.Library) -> None:
    x_NK, importance = rows_of("heavy-tailed", seed=6), importance_of(7)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(quantize_blocks(library, x_NK, GgmlType.Q4_K, Fit.WEIGHTED, importance, importance))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_without_the_library_numpy_quantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NK, importance = rows_of("gaussian", seed=8), importance_of(9)
    expected = ggml.quantize_ggml(x_NK, GgmlType.Q4_K, importance)
    monkeypatch.setattr(native, "load", lambda: native.Absent("it was taken away"))
    found = ggml.quantize_ggml(x_NK, GgmlType.Q4_K, importance)
    assert torch.equal(found.weight.blocks, expected.weight.blocks)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
