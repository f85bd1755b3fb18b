"""The memory of keys and values: for every layer, blocks on that layer's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.cache import packed
from qlocal.cache.conditioning import Conditioning
from qlocal.kernels import large_pages
from qlocal.kernels.native_step import KEY_TILE

DENSE_DTYPES = {"f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class Side:
    """Keys or values of one layer: `memory` (P, Hk, bytes) uint8, of one type.

    Tokens come in tiles, `tile` of them beside each other: 16 keys, so that the CPU makes their scores in one register,
    or one value. f16, f32: a tile is (Dh, tile). q8, q4: scales (groups, 1 or 2, tile), then codes (groups, rows,
    tile), as `packed.encode` makes them; what is stored is rotated. A smaller block is one tile.
    """

    memory: Tensor
    type: str
    head_dim: int
    block_size: int
    tile: int

    @property
    def dense(self) -> Tensor:
        """All of f16 or f32 as (P, Hk, block_size / tile, Dh, tile), a view."""
        num_blocks, num_kv_heads, _ = self.memory.shape
        shape = (num_blocks, num_kv_heads, self.block_size // self.tile, self.head_dim, self.tile)
        return self.memory.view(DENSE_DTYPES[self.type]).view(shape)

    @property
    def codes_and_scales(self) -> tuple[Tensor, Tensor]:
        """Views of q8 or q4, (P, Hk, block_size / tile, groups, rows, tile): codes, and scales with their own rows."""
        groups = self.head_dim // packed.group_size_of(self.head_dim)
        tiles = torch.unflatten(self.memory, -1, (self.block_size // self.tile, -1))
        scale_bytes = packed.SCALE_BYTES * groups * self.tile
        scales = tiles[..., :scale_bytes]
        scales = scales.view(torch.float16) if self.type == "q8" else scales
        shape = (groups, -1, self.tile)
        return torch.unflatten(tiles[..., scale_bytes:], -1, shape), torch.unflatten(scales, -1, shape)

    def write(self, blocks: Tensor, offsets: Tensor, x: Tensor) -> None:
        """Store tokens (T, Hk, Dh) f32 at blocks and offsets, (T,) int64."""
        tiles, lanes = offsets // self.tile, offsets % self.tile
        if self.type in DENSE_DTYPES:
            self.dense[blocks, :, tiles, :, lanes] = x.to(DENSE_DTYPES[self.type])
            return
        codes, scales = self.codes_and_scales
        parts = packed.encode(packed.rotate(x), self.type)
        codes[blocks, :, tiles, :, :, lanes], scales[blocks, :, tiles, :, :, lanes] = parts

    def read(self, block_table: Tensor, num_tokens: int) -> Tensor:
        """Return the first `num_tokens` of a sequence, (Hk, S, Dh) f32."""
        if self.type in DENSE_DTYPES:
            return _flat(self.dense[block_table].permute(1, 0, 2, 4, 3))[:, :num_tokens]
        codes, scales = (part[block_table].permute(1, 0, 2, 5, 3, 4) for part in self.codes_and_scales)
        tokens = packed.decode(codes.contiguous(), scales, self.type)
        return packed.rotate(tokens.flatten(1, 3)[:, :num_tokens])

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one block to another, in whole tiles."""
        tiles = torch.unflatten(self.memory, -1, (self.block_size // self.tile, -1))
        count = -(-num_tokens // self.tile)
        tiles[target, :, :count] = tiles[source, :, :count]


@dataclass(frozen=True)
class LayerCache:
    """K (rotated to their positions) and V of one layer. conditioning: for types that round, where there is one."""

    keys: Side
    values: Side
    conditioning: Conditioning | None = None

    @property
    def device(self) -> torch.device:
        return self.keys.memory.device

    def write(self, blocks: Tensor, offsets: Tensor, positions: Tensor, k: Tensor, v: Tensor) -> None:
        """Store tokens. blocks, offsets: (T,) int64 where each goes; k, v: (T, Hk, Dh) f32."""
        if self.conditioning is not None:
            k = self.conditioning.keys_in(k, positions) if self.keys.type not in DENSE_DTYPES else k
            v = self.conditioning.values_in(v) if self.values.type not in DENSE_DTYPES else v
        self.keys.write(blocks, offsets, k)
        self.values.write(blocks, offsets, v)

    def read(self, block_table: Tensor, num_tokens: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Return K and V of `num_tokens` of a sequence, each (Hk, S, Dh) f32. first: the position where the table
        begins."""
        k, v = self.keys.read(block_table, num_tokens), self.values.read(block_table, num_tokens)
        if self.conditioning is not None:
            k = self.conditioning.keys_out(k, first) if self.keys.type not in DENSE_DTYPES else k
            v = self.conditioning.values_out(v) if self.values.type not in DENSE_DTYPES else v
        return k, v


class KVStorage:
    """Blocks of every layer. Zeroed memory is not touched before it is written, so unused blocks cost nothing.

    types: of keys and of values, f32, f16, q8 or q4; one pair a layer, like conditioning, unless that is None.
    """

    def __init__(
        self,
        layer_devices: Sequence[str],
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        types: Sequence[tuple[str, str]],
        conditioning: Sequence[Conditioning] | None = None,
    ) -> None:
        tile = min(KEY_TILE, block_size)
        assert block_size % tile == 0, f"blocks of {block_size} tokens are not whole tiles"
        self.head_dim = head_dim

        def side(device: str, kind: str, tokens: int) -> Side:
            shape = (num_blocks, num_kv_heads, block_size * _token_bytes(kind, head_dim))
            return Side(_zeros(shape, torch.device(device)), kind, head_dim, block_size, tokens)

        self.layers = [
            LayerCache(
                side(device, key_type, tile),
                side(device, value_type, 1),
                None if conditioning is None else conditioning[index],
            )
            for index, (device, (key_type, value_type)) in enumerate(zip(layer_devices, types, strict=True))
        ]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        return sum(side.memory[0].nbytes for layer in self.layers for side in (layer.keys, layer.values))

    def block_parts(self, block: int) -> list[Tensor]:
        """Return what one block holds, in pieces (Hk, bytes) uint8: K and V of every layer, views on their devices."""
        return [side.memory[block] for layer in self.layers for side in (layer.keys, layer.values)]

    def read_block(self, block: int) -> list[Tensor]:
        """See `BlockAccess.read_block`."""
        return [part.cpu() for part in self.block_parts(block)]

    def room_for(self, block: int) -> list[Tensor]:
        """See `BlockAccess.room_for`: where the cache is on the host, its own memory."""
        return [
            part if part.device.type == "cpu" else torch.empty_like(part, device="cpu")
            for part in self.block_parts(block)
        ]

    def write_block(self, block: int, parts: Sequence[Tensor]) -> None:
        """See `BlockAccess.write_block`."""
        for ours, given in zip(self.block_parts(block), parts, strict=True):
            if ours.data_ptr() != given.data_ptr():
                ours.copy_(given)

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one block to another, in every layer."""
        for layer in self.layers:
            layer.keys.copy_block(source, target, num_tokens)
            layer.values.copy_block(source, target, num_tokens)


def _token_bytes(kind: str, head_dim: int) -> int:
    """Return the bytes of one token and head."""
    if kind in DENSE_DTYPES:
        return head_dim * DENSE_DTYPES[kind].itemsize
    return head_dim * packed.PACKED_BITS[kind] // 8 + packed.SCALE_BYTES * (head_dim // packed.group_size_of(head_dim))


def _flat(parts: Tensor) -> Tensor:
    """(Hk, ..., Dh) of the cache's dtype -> (Hk, S, Dh) f32, converted and put in order in one pass."""
    flat = torch.empty(parts.shape, device=parts.device)
    flat.copy_(parts)
    return flat.view(parts.shape[0], -1, parts.shape[-1])


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return zeroed bytes; on the CPU in large pages."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=torch.uint8, device=device)
    return large_pages.zeros(math.prod(shape)).view(shape)
