"""K and V come back as they were written, in the order of the block table."""

from __future__ import annotations

import pytest
import torch

from qlocal.cache.storage import KVStorage, Side

TYPES = ["f32", "f16", "q8", "q4"]
TOLERANCE = {"f32": 0.0, "f16": 5e-4, "q8": 8e-3, "q4": 0.1}
"""Relative distance of what is read of random numbers."""


def sides(key_type: str, value_type: str, block_size: int, head_dim: int) -> tuple[Side, Side]:
    layer = KVStorage(["cpu"], 5, block_size, 2, head_dim, [(key_type, value_type)]).layers[0]
    return layer.keys, layer.values


@pytest.mark.parametrize("head_dim", [8, 64, 80])
@pytest.mark.parametrize("block_size", [4, 32])
@pytest.mark.parametrize("kind", TYPES)
def test_tokens_are_read_in_the_order_of_the_block_table(kind: str, block_size: int, head_dim: int) -> None:
    tokens = 2 * block_size - 1
    table, positions = torch.tensor([3, 1]), torch.arange(tokens)
    for side in sides(kind, kind, block_size, head_dim):
        x = torch.randn(tokens, 2, head_dim)
        side.write(table[positions // block_size], positions % block_size, x)
        read = side.read(table, tokens)
        assert read.shape == (2, tokens, head_dim)
        assert float((read - x.transpose(0, 1)).norm() / x.norm()) <= TOLERANCE[kind]


@pytest.mark.parametrize("kind", TYPES)
def test_writing_a_token_leaves_its_neighbours_alone(kind: str) -> None:
    for side in sides(kind, kind, 32, 64):
        table, x = torch.tensor([2]), torch.randn(32, 2, 64)
        side.write(table.expand(32), torch.arange(32), x)
        before = side.read(table, 32)
        side.write(table, torch.tensor([17]), torch.randn(1, 2, 64))
        others = torch.arange(32) != 17
        assert torch.equal(side.read(table, 32)[:, others], before[:, others])


def test_types_of_keys_and_values_are_chosen_apart() -> None:
    keys, values = sides("q8", "q4", 32, 64)
    assert keys.memory.shape == (5, 2, 32 * 68) and values.memory.shape == (5, 2, 32 * 36)  # 8.5 and 4.5 bits


@pytest.mark.parametrize(("block_size", "num_tokens"), [(4, 3), (32, 5), (32, 21)])
@pytest.mark.parametrize("types", [("f32", "f32"), ("f16", "f16"), ("q8", "q4"), ("q4", "q8")])
def test_a_copied_block_holds_the_first_tokens_in_every_layer(
    types: tuple[str, str], block_size: int, num_tokens: int
) -> None:
    storage = KVStorage(["cpu", "cpu"], 3, block_size, 1, 32, [types] * 2)
    source, target = torch.tensor([0]), torch.tensor([2])
    for layer in storage.layers:
        for side in (layer.keys, layer.values):
            side.write(source.expand(block_size), torch.arange(block_size), torch.randn(block_size, 1, 32))
    storage.copy_block(0, 2, num_tokens)
    for layer in storage.layers:
        for copied, original in zip(layer.read(target, num_tokens), layer.read(source, num_tokens), strict=True):
            assert torch.equal(copied, original) and copied.any()
        assert not layer.values.read(target, block_size)[:, num_tokens:].any()
