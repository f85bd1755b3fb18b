"""The memory of keys and values: for every layer, blocks on that layer's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CACHE_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class LayerCache:
    """K (rotated) and V of one layer side by side: (P, 2, Hk, block_size, Dh) in the cache's dtype."""

    kv: Tensor

    def write(self, blocks: Tensor, offsets: Tensor, k: Tensor, v: Tensor) -> None:
        """Store tokens. blocks, offsets: (T,) int64 where each goes; k, v: (T, Hk, Dh) f32."""
        self.kv[blocks, :, :, offsets] = torch.stack((k, v), dim=1).to(self.kv.dtype)

    def read(self, block_table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return K and V of the first `num_tokens` of a sequence, each (Hk, S, Dh) f32."""
        _, _, num_kv_heads, block_size, head_dim = self.kv.shape
        num_blocks = block_table.shape[0]
        gathered = torch.empty(2, num_kv_heads, num_blocks, block_size, head_dim, device=self.kv.device)
        gathered.copy_(self.kv[block_table].permute(1, 2, 0, 3, 4))  # converts and reorders in one pass
        k, v = gathered.view(2, num_kv_heads, num_blocks * block_size, head_dim)[:, :, :num_tokens]
        return k, v


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
        shape = (num_blocks, 2, num_kv_heads, block_size, head_dim)
        self.layers = [
            LayerCache(torch.zeros(shape, dtype=CACHE_DTYPES[dtype], device=device)) for device in layer_devices
        ]

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one block to another, in every layer."""
        for layer in self.layers:
            layer.kv[target, :, :, :num_tokens] = layer.kv[source, :, :, :num_tokens]
