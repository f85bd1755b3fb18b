"""K and V come back as they were written, in the order of the block table."""

from __future__ import annotations

import pytest
import torch

from qlocal.cache.storage import KVStorage


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float32", 0.0)])
def test_tokens_are_read_in_the_order_of_the_block_table(dtype: str, tolerance: float) -> None:
    layer = KVStorage(["cpu"], num_blocks=5, block_size=4, num_kv_heads=2, head_dim=8, dtype=dtype).layers[0]
    k, v = torch.randn(7, 2, 8), torch.randn(7, 2, 8)
    table = torch.tensor([3, 1])
    positions = torch.arange(7)
    layer.write(table[positions // 4], positions % 4, k, v)
    read_k, read_v = layer.read(table, 7)
    torch.testing.assert_close(read_k, k.transpose(0, 1), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(read_v, v.transpose(0, 1), atol=tolerance, rtol=tolerance)


def test_a_copied_block_holds_the_first_tokens_in_every_layer() -> None:
    storage = KVStorage(["cpu", "cpu"], num_blocks=3, block_size=4, num_kv_heads=1, head_dim=2, dtype="float32")
    for layer in storage.layers:
        layer.kv[0] = torch.randn(2, 1, 4, 2)
    storage.copy_block(0, 2, 3)
    for layer in storage.layers:
        assert torch.equal(layer.kv[2, :, :, :3], layer.kv[0, :, :, :3])
        assert not layer.kv[2, :, :, 3:].any()
