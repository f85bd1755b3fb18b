"""What stands between the products of a decoder layer: residual with norm, and the gate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from qlocal.layers.norm import rms_norm


@pytest.mark.parametrize(("tokens", "width", "num_parts"), [(1, 64, 1), (3, 896, 4), (16, 100, 2)])
def test_what_products_give_is_added_and_normed(
    interpreted: SimpleNamespace, tokens: int, width: int, num_parts: int
) -> None:
    stream, parts, weight = torch.randn(tokens, width), torch.randn(num_parts, tokens, width), torch.randn(width)
    expected = stream + parts.sum(0)
    out = interpreted.add_norm.add_norm(stream, parts, weight, 1e-5, torch.float32)
    torch.testing.assert_close(stream, expected)
    torch.testing.assert_close(out, rms_norm(expected, weight, 1e-5), rtol=1e-5, atol=1e-6)


def test_the_first_norm_adds_nothing_and_the_last_sum_is_not_normed(interpreted: SimpleNamespace) -> None:
    stream, parts, weight = torch.randn(2, 96), torch.randn(1, 2, 96), torch.ones(96)
    before = stream.clone()
    out = interpreted.add_norm.add_norm(stream, None, weight, 1e-6, torch.bfloat16)
    assert out.dtype == torch.bfloat16 and torch.equal(stream, before)
    assert interpreted.add_norm.add_norm(stream, parts, None, 1e-6, torch.bfloat16) is None
    torch.testing.assert_close(stream, before + parts[0])


@pytest.mark.parametrize(("tokens", "width", "num_parts"), [(1, 48, 1), (3, 1030, 3)])
def test_the_gate_is_silu_times_up(interpreted: SimpleNamespace, tokens: int, width: int, num_parts: int) -> None:
    parts = 5 * torch.randn(num_parts, tokens, 2 * width)
    gate, up = parts.sum(0).split([width, width], dim=1)  # type: ignore[no-untyped-call]
    out = interpreted.silu_mul.silu_mul(parts, torch.float32)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-5, atol=1e-5)


def test_a_gate_far_below_zero_is_shut(interpreted: SimpleNamespace) -> None:
    parts = torch.tensor([[[-200.0, 200.0, 1.0, 1.0]]])
    assert interpreted.silu_mul.silu_mul(parts, torch.float32).tolist() == [[0.0, 200.0]]
