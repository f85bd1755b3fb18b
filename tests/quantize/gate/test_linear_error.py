import pytest
import torch

from quantize.gate.linear_error import relative_error, row_factors


def outputs() -> torch.Tensor:
    return torch.randn(64, 12, generator=torch.Generator().manual_seed(1))


def test_rows_that_were_divided_are_brought_back() -> None:
    wanted = outputs()
    scale = torch.linspace(0.1, 5, 12)
    torch.testing.assert_close(row_factors(wanted, wanted / scale), scale)


def test_a_damaged_row_is_not_taken_for_a_scaled_one() -> None:
    wanted = outputs()
    found = wanted / 2
    found[:, 3] = torch.randn(64, generator=torch.Generator().manual_seed(2))
    found[:, 5] = -wanted[:, 5]
    found[:, 7] = 0
    factors = row_factors(wanted, found)
    assert factors[[3, 5, 7]].tolist() == [1, 1, 1]
    assert factors[0] == pytest.approx(2)


def test_relative_error_is_that_of_the_energy() -> None:
    wanted = outputs()
    assert relative_error(wanted, wanted / 2) == pytest.approx(0.25)
    assert relative_error(torch.zeros(3, 4), torch.ones(3, 4)) is None
