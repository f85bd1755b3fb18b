"""Packing against its inverse and against a slow reading of the definitions."""

import numpy as np
import pytest
import torch

from qlocal.formats import packing

SHAPES = [(8, 8), (8, 64), (32, 128), (40, 264), (4096, 512)]


def _codes(rows: int, columns: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(rows + columns).integers(0, 16, (rows, columns), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES)
def test_unpack_returns_the_packed_codes(shape: tuple[int, int]) -> None:
    codes = _codes(*shape)
    assert torch.equal(packing.unpack_codes(packing.pack_codes(codes)), codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_words_of_awq_and_gptq_round_trip(shape: tuple[int, int]) -> None:
    packed = packing.pack_codes(_codes(*shape))
    assert torch.equal(packing.codes_from_awq(packing.codes_to_awq(packed)), packed)
    assert torch.equal(packing.codes_from_gptq(packing.codes_to_gptq(packed)), packed)


@pytest.mark.parametrize("shape", [(8, 8), (32, 24)])
def test_awq_words_interleave_eight_columns(shape: tuple[int, int]) -> None:
    codes = _codes(*shape)
    words = packing.codes_to_awq(packing.pack_codes(codes))
    assert words.shape == (shape[1], shape[0] // 8)
    for k in range(shape[1]):
        for n in range(shape[0]):
            nibble = [0, 4, 1, 5, 2, 6, 3, 7][n % 8]
            assert (int(words[k, n // 8]) >> (4 * nibble)) & 15 == int(codes[n, k])


@pytest.mark.parametrize("shape", [(8, 8), (24, 32)])
def test_gptq_words_hold_eight_inputs_in_order(shape: tuple[int, int]) -> None:
    codes = _codes(*shape)
    words = packing.codes_to_gptq(packing.pack_codes(codes))
    assert words.shape == (shape[1] // 8, shape[0])
    for k in range(shape[1]):
        for n in range(shape[0]):
            assert (int(words[k // 8, n]) >> (4 * (k % 8))) & 15 == int(codes[n, k])


@pytest.mark.parametrize("orders", [(None, None), (packing.AWQ_ORDER, packing.AWQ_INVERSE)])
def test_zero_points_round_trip(orders: tuple[tuple[int, ...] | None, tuple[int, ...] | None]) -> None:
    zeros = _codes(48, 5)
    words = packing.zeros_to_words(zeros, orders[0])
    assert words.shape == (5, 6) and words.dtype == torch.int32
    assert torch.equal(packing.zeros_from_words(words, orders[1]), zeros)
