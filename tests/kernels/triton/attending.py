"""A layer's cache with a past, and what the readable attention makes of a step over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.cache.conditioning import Conditioning
from qlocal.cache.storage import KVStorage, LayerCache
from qlocal.kernels.native_step import Cache
from qlocal.layers.paged_attention import PagedAttention, TokenRun
from qlocal.layers.rotary import Rotary, Rotation
from tests.tiny import tiny_config

BLOCK, NUM_BLOCKS = 32, 16


@dataclass
class Case:
    """One layer's attention: `heads` are query heads, KV heads and numbers of a head."""

    heads: tuple[int, int, int]
    types: tuple[str, str]
    bias_size: float
    rotary: Rotary
    storage: KVStorage
    bias: Tensor | None

    @property
    def layer(self) -> LayerCache:
        return self.storage.layers[0]

    @property
    def memory(self) -> list[Tensor]:
        return [self.layer.keys.memory, self.layer.values.memory]

    @property
    def cache(self) -> Cache:
        known, keys, values = self.layer.conditioning, self.layer.keys, self.layer.values
        assert known is not None
        of_keys, of_values = (None if side.type == "f16" else known for side in (keys, values))
        return Cache(
            keys.memory,
            values.memory,
            keys.type,
            values.type,
            None if of_keys is None else of_keys.key_bias,
            None if of_keys is None else of_keys.key_scale,
            None if of_values is None else of_values.value_mean,
            None if of_values is None else of_values.value_scale,
        )

    def step(self, qkv: Tensor, runs: Sequence[TokenRun]) -> Tensor:
        """Return what the layer attends to, (T, H * Dh), for products (T, (H + 2 Hk) * Dh); the cache is written."""
        count, kv_count, size = self.heads
        attention = PagedAttention(runs, self.storage, BLOCK)
        biased = qkv if self.bias is None else qkv + self.bias
        q, k, v = biased.view(len(qkv), -1, size).split([count, kv_count, kv_count], dim=1)
        rotation = self.rotary.at(attention.positions)
        return attention.of_layer(0)(rotation.apply(q), rotation.apply(k), v).reshape(len(qkv), -1)

    def angles(self, runs: Sequence[TokenRun]) -> Rotation:
        return self.rotary.at(torch.cat([torch.arange(run.num_past, run.num_past + run.length) for run in runs]))


def make_case(heads: tuple[int, int, int], types: tuple[str, str], bias_size: float = 0.0) -> Case:
    """Return an empty cache with made-up constants. bias_size: of the key bias; 0 for a model without biases."""
    count, kv_count, size = heads
    generator = torch.Generator().manual_seed(count)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    sizes = {"hidden_size": count * size, "num_attention_heads": count, "num_key_value_heads": kv_count}
    rotary = Rotary(tiny_config("llama", sizes))
    bias = None
    if bias_size:
        bias = noise((count + 2 * kv_count) * size)
        bias[count * size : (count + kv_count) * size] *= bias_size
    key_bias = None if bias is None else bias[count * size : (count + kv_count) * size].view(kv_count, size)
    key_scale = (noise(kv_count, size // 2) / 2).exp().repeat(1, 2)
    value_scale = (noise(kv_count, size) / 2).exp()

    def rotate(x: Tensor, positions: Tensor) -> Tensor:
        return rotary.at(positions).apply(x)

    known = Conditioning(key_bias, key_scale, noise(kv_count, size), value_scale, rotate)
    storage = KVStorage(["cpu"], NUM_BLOCKS, BLOCK, kv_count, size, [types], [known])
    return Case(heads, types, bias_size, rotary, storage, bias)


def products(case: Case, tokens: int, seed: int = 0) -> Tensor:
    """Return made-up q, k and v without their biases, (T, (H + 2 Hk) * Dh)."""
    count, kv_count, size = case.heads
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, (count + 2 * kv_count) * size, generator=generator)


def slots_of(runs: Sequence[TokenRun]) -> Tensor:
    """Return where the step's tokens go in the cache, (T,) int32."""
    places = [(run, p) for run in runs for p in range(run.num_past, run.num_past + run.length)]
    return torch.tensor([run.blocks[p // BLOCK] * BLOCK + p % BLOCK for run, p in places], dtype=torch.int32)
