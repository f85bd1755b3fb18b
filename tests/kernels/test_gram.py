"""Gram matrices in native code against float64, on shapes that no tile divides."""

from __future__ import annotations

import pytest
import torch

from qlocal.kernels import native
from qlocal.kernels.gram import add_gram, can_add_gram

needs_amx = pytest.mark.skipif(not can_add_gram(), reason="this machine has no AMX, or it is turned off")


@needs_amx
@pytest.mark.parametrize(
    ("tokens", "columns"), [(1, 1), (1, 16), (31, 33), (32, 32), (33, 48), (1023, 100), (1025, 513), (2100, 1056)]
)
def test_sums_equal_float64_above_the_diagonal(tokens: int, columns: int) -> None:
    torch.manual_seed(tokens)
    x = (torch.randn(tokens, columns) * torch.logspace(-3, 3, columns)).bfloat16()
    before = torch.randn(columns, columns)
    gram = before.clone()
    add_gram(x, gram)
    exact = before.double() + x.double().T @ x.double()
    sizes = x.double().norm(dim=0)
    error = ((gram.double() - exact).abs() / (sizes[:, None] * sizes + before.abs())).triu()
    assert float(error.max()) < 1e-5


@needs_amx
def test_the_number_of_threads_changes_no_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(700, 1100).bfloat16()
    grams = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            gram = torch.zeros(1100, 1100)
            add_gram(x, gram)
            grams.append(gram.triu())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*grams)


@needs_amx
def test_no_inputs_add_nothing() -> None:
    gram = torch.ones(40, 40)
    add_gram(torch.empty(0, 40, dtype=torch.bfloat16), gram)
    assert torch.equal(gram, torch.ones(40, 40))


def test_without_the_library_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: native.Absent("not built"))
    assert not can_add_gram()
