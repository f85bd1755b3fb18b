"""Attention over scattered blocks equals attention over the plain sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.layers.attention import causal
from qlocal.layers.paged_attention import PagedAttention, TokenRun

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 6, 2, 8, 4


def tokens(count: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(count, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))  # type: ignore[return-value]


@pytest.mark.parametrize("chunks", [[19], [7, 12], [1] * 19, [16, 1, 1, 1], [5, 5, 9]])
def test_chunks_over_blocks_equal_the_plain_sequence(chunks: list[int]) -> None:
    storage = KVStorage(["cpu"], 9, BLOCK, KV_HEADS, HEAD_DIM, [("f32", "f32")])
    storage.layers[0].keys.dense.fill_(float("nan"))  # what was not written must not be read
    q, k, v = tokens(19)
    table, past, outputs = [7, 2, 8, 0, 5], 0, []
    for length in chunks:
        rows = slice(past, past + length)
        num_blocks = -(-(past + length) // BLOCK)
        attention = PagedAttention([TokenRun(length, past, table[:num_blocks])], storage, BLOCK)
        assert attention.positions.tolist() == list(range(past, past + length))
        outputs.append(attention.of_layer(0)(q[rows], k[rows], v[rows]))
        past += length
    torch.testing.assert_close(torch.cat(outputs), causal([19])(q, k, v), atol=1e-5, rtol=1e-5)


def test_sequences_of_one_step_read_their_own_blocks() -> None:
    storage = KVStorage(["cpu"], 9, BLOCK, KV_HEADS, HEAD_DIM, [("f32", "f32")])
    first, second = tokens(6), tokens(3)
    runs = [TokenRun(6, 0, [3, 1]), TokenRun(3, 0, [4])]
    joined = (torch.cat(pair) for pair in zip(first, second, strict=True))
    together = PagedAttention(runs, storage, BLOCK).of_layer(0)(*joined)
    torch.testing.assert_close(together[:6], causal([6])(*first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[6:], causal([3])(*second), atol=1e-5, rtol=1e-5)
