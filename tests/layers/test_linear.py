"""Parts that share an input, joined into one kernel call or not, give the same products."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from qlocal.ggml_types import GgmlType, row_bytes
from qlocal.kernels import reference
from qlocal.layers.linear import Placement, QuantLinear
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight

K = 256
SIZES = (48, 16, 16)
EXACT = Placement(torch.device("cpu"), "float32")


def dense(rows: int, dtype: torch.dtype = torch.bfloat16, *, permuted: bool = False) -> DenseWeight:
    row_map = torch.randperm(rows) if permuted else None
    return DenseWeight((torch.randn(rows, K) / K**0.5).to(dtype), row_map)


def affine(rows: int, group_size: int = 64, g_idx: torch.Tensor | None = None) -> AffineWeight:
    groups = K // group_size
    return AffineWeight(
        torch.randint(0, 256, (rows, K // 2), dtype=torch.uint8),
        (torch.rand(rows, groups) / 64).half(),
        torch.randint(0, 16, (rows, groups), dtype=torch.uint8),
        group_size,
        g_idx,
    )


def blocks(rows: int, ggml_type: GgmlType = GgmlType.Q4_K, *, permuted: bool = False) -> BlockWeight:
    data = torch.randint(0, 64, (rows, row_bytes(ggml_type, K)), dtype=torch.uint8)  # small exponents: finite scales
    return BlockWeight(data, ggml_type, K, torch.randperm(rows) if permuted else None)


ORDER = torch.randperm(K, generator=torch.Generator().manual_seed(0)).int() // 64
CASES: dict[str, tuple[list[Weight], int]] = {
    "dense": ([dense(n) for n in SIZES], 1),
    "dense of two dtypes": ([dense(48), dense(16, torch.float16), dense(16, torch.float16)], 2),
    "dense, q and k permuted": ([dense(48, permuted=True), dense(16, permuted=True), dense(16)], 1),
    "affine": ([affine(n) for n in SIZES], 1),
    "affine of one order": ([affine(n, g_idx=ORDER) for n in SIZES], 1),
    "affine of two orders": ([affine(48, g_idx=ORDER), affine(16, g_idx=ORDER.flip(0)), affine(16)], 3),
    "affine of two group sizes": ([affine(48, 128), affine(16), affine(16)], 2),
    "blocks": ([blocks(n) for n in SIZES], 1),
    "blocks, q and k permuted": ([blocks(48, permuted=True), blocks(16, permuted=True), blocks(16)], 1),
    "blocks of two types": ([blocks(48), blocks(16), blocks(16, GgmlType.Q6_K)], 2),
    "kinds mixed": ([dense(48), affine(16), blocks(16)], 3),
}


def biases(sizes: Sequence[int]) -> list[DenseWeight | None]:
    return [DenseWeight(torch.randn(sizes[0])), None, DenseWeight(torch.randn(sizes[2]).bfloat16())]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tokens", [1, 5, 20])
def test_joined_parts_give_the_products_of_each(name: str, tokens: int) -> None:
    weights, num_calls = CASES[name]
    linear = QuantLinear(K, SIZES, EXACT)
    added = biases(SIZES)
    linear.fill(weights, added)
    assert linear.num_calls == num_calls
    x = torch.randn(tokens, K)
    for y, weight, bias in zip(linear(x), weights, added, strict=True):
        expected = x @ reference.dequantize(weight).T
        if bias is not None:
            expected += bias.data.float()
        scale = expected.abs().max()
        torch.testing.assert_close(y / scale, expected / scale, atol=1e-5, rtol=1e-4)


def test_single_parts_are_swapped_one_by_one() -> None:
    linear = QuantLinear(K, SIZES, EXACT)
    first, second = [dense(n) for n in SIZES], affine(16)
    for index, weight in enumerate(first):
        linear.set_part(index, weight)
    x = torch.randn(3, K)
    before = linear(x)
    linear.set_part(1, second, DenseWeight(torch.ones(16)))
    after = linear(x)
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    torch.testing.assert_close(after[1], x @ reference.dequantize(second).T + 1, atol=1e-4, rtol=1e-4)


def test_joined_parts_are_not_swapped_one_by_one() -> None:
    linear = QuantLinear(K, SIZES, EXACT)
    linear.fill([dense(n) for n in SIZES], [None] * 3)
    with pytest.raises(AssertionError, match="joined parts"):
        linear.set_part(0, dense(48))


def test_bfloat16_rounds_no_more_than_its_name_says_and_keeps_the_sum_in_float32() -> None:
    weight = dense(48)
    linear = QuantLinear(K, (48,), Placement(torch.device("cpu"), "bfloat16"))
    linear.fill([weight], [None])
    x = torch.randn(2, K)
    (y,) = linear(x)
    assert y.dtype == torch.float32
    exact, size = x @ weight.data.float().T, x.abs() @ weight.data.float().abs().T
    assert bool(((y - exact).abs() <= 2**-8 * size).all())
