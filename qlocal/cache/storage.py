"""The memory of keys and values: for every layer, blocks on that layer's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.kernels import large_pages
from qlocal.kernels.native_step import KEY_TILE

CACHE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LayerCache:
    """K (rotated) and V of one layer in the cache's dtype: (P, 2, Hk, block_size * Dh), K first.

    V of a head lies as (block_size, Dh). K lies as (block_size / tile, Dh, tile), so that the CPU makes the scores of
    `tile` keys in one register; torch reads it through a view. A smaller block is one tile.
    """

    kv: Tensor
    block_size: int

    @property
    def keys(self) -> Tensor:
        """K as (P, Hk, block_size / tile, Dh, tile), a view."""
        num_blocks, _, num_kv_heads, _ = self.kv.shape
        tile = min(KEY_TILE, self.block_size)
        return self.kv[:, 0].view(num_blocks, num_kv_heads, self.block_size // tile, -1, tile)

    @property
    def values(self) -> Tensor:
        """V as (P, Hk, block_size, Dh), a view."""
        num_blocks, _, num_kv_heads, _ = self.kv.shape
        return self.kv[:, 1].view(num_blocks, num_kv_heads, self.block_size, -1)

    def write(self, blocks: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
        """Store tokens. blocks, offsets: (T,) int64 where each goes; k, v: (T, Hk, Dh) f32."""
        keys = self.keys
        tile = keys.shape[-1]
        keys[blocks, :, offsets // tile, :, offsets % tile] = k.to(self.kv.dtype)
        self.values[blocks, :, offsets] = v.to(self.kv.dtype)

    def read(self, block_table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return K and V of the first `num_tokens` of a sequence, each (Hk, S, Dh) f32."""
        keys = self.keys[block_table].permute(1, 0, 2, 4, 3)  # (Hk, blocks, tiles, tile, Dh)
        values = self.values[block_table].transpose(0, 1)  # (Hk, blocks, block_size, Dh)
        return _flat(keys)[:, :num_tokens], _flat(values)[:, :num_tokens]


def _flat(parts: Tensor) -> Tensor:
    """(Hk, ..., Dh) of the cache's dtype -> (Hk, S, Dh) f32, converted and put in order in one pass."""
    flat = torch.empty(parts.shape, device=parts.device)
    flat.copy_(parts)
    return flat.view(parts.shape[0], -1, parts.shape[-1])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeroed memory; on the CPU in large pages."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return large_pages.zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


class KVStorage:
    """Blocks of every layer. Zeroed memory is not touched before it is written, so unused blocks cost nothing."""

    def __init__(
        self,
        layer_devices: Sequence[str],
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: str,
    ) -> None:
        assert block_size % min(KEY_TILE, block_size) == 0, f"blocks of {block_size} tokens are not whole tiles"
        shape = (num_blocks, 2, num_kv_heads, block_size * head_dim)
        self.layers = [
            LayerCache(_zeros(shape, CACHE_DTYPES[dtype], torch.device(device)), block_size) for device in layer_devices
        ]

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one block to another, in every layer."""
        for layer in self.layers:
            tiles = -(-num_tokens // layer.keys.shape[-1])
            layer.keys[target, :, :tiles] = layer.keys[source, :, :tiles]
            layer.values[target, :, :num_tokens] = layer.values[source, :, :num_tokens]
