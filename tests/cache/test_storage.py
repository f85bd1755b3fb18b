"""K and V come back as they were written, in the order of the block table."""

from __future__ import annotations

import pytest
import torch

from qlocal.cache.storage import KVStorage


@pytest.mark.parametrize("block_size", [4, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 0.0)])
def test_tokens_are_read_in_the_order_of_the_block_table(dtype: str, tolerance: float, block_size: int) -> None:
    layer = KVStorage(["cpu"], 5, block_size, num_kv_heads=2, head_dim=8, dtype=dtype).layers[0]
    tokens = 2 * block_size - 1
    k, v = torch.randn(tokens, 2, 8), torch.randn(tokens, 2, 8)
    table, positions = torch.tensor([3, 1]), torch.arange(tokens)
    layer.write(table[positions // block_size], positions % block_size, k, v)
    read_k, read_v = layer.read(table, tokens)
    torch.testing.assert_close(read_k, k.transpose(0, 1), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(read_v, v.transpose(0, 1), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("block_size", "num_tokens"), [(4, 3), (32, 5), (32, 21)])
def test_a_copied_block_holds_the_first_tokens_in_every_layer(block_size: int, num_tokens: int) -> None:
    storage = KVStorage(["cpu", "cpu"], 3, block_size, num_kv_heads=1, head_dim=2, dtype="float32")
    source, target = torch.tensor([0]), torch.tensor([2])
    for layer in storage.layers:
        layer.kv[0] = torch.randn(2, 1, block_size * 2)
    storage.copy_block(0, 2, num_tokens)
    for layer in storage.layers:
        for copied, original in zip(layer.read(target, num_tokens), layer.read(source, num_tokens), strict=True):
            assert torch.equal(copied, original)
        assert not layer.values[2, :, num_tokens:].any()
