"""Blocks of a tensor split as those of one cache: rank 0 gathers what every rank holds of a block, and hands it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.engine.team import Team
from qlocal.layers.seat import Seat
from qlocal.parallel.collectives import Collectives
from qlocal.protocol import Message, ReadBlock, WriteBlock


class LeadingCache:
    """See `BlockAccess`, on rank 0. What travels is one piece a rank: its heads of K and V, layer by layer."""

    def __init__(self, own: KVStorage, seat: Seat, tell: Callable[[Message], None], team: Team) -> None:
        """tell: every other rank a message, which it answers by `follow_read` or `follow_write`."""
        self._own = own
        self._collectives = seat.collectives
        self._heads = [slice(share.kv_heads.start, share.kv_heads.stop) for share in seat.shares]
        self._tell = tell
        self._team = team
        self._staged: list[Tensor] = []

    @property
    def block_bytes(self) -> int:
        """See `BlockAccess.block_bytes`."""
        own = self._heads[0]
        return self._own.block_bytes // (own.stop - own.start) * max(heads.stop for heads in self._heads)

    def read_block(self, block: int) -> list[Tensor]:
        """See `BlockAccess.read_block`."""
        whole = self.room_for(block)
        with self._team.explaining():
            self._tell(ReadBlock(block))
            _set(whole, self._heads[0], self._own.read_block(block))
            for rank, heads in enumerate(self._heads[1:], 1):
                self._collectives.take(piece := torch.empty(_num_bytes(whole, heads), dtype=torch.uint8), rank)
                _set(whole, heads, _parted(piece, whole, heads))
        return whole

    def room_for(self, block: int) -> list[Tensor]:
        """See `BlockAccess.room_for`: the same for every block."""
        if not self._staged:
            num_heads = max(heads.stop for heads in self._heads)
            parts = self._own.block_parts(block)
            self._staged = [torch.empty(num_heads, part.shape[1], dtype=torch.uint8) for part in parts]
        return self._staged

    def write_block(self, block: int, parts: Sequence[Tensor]) -> None:
        """See `BlockAccess.write_block`."""
        with self._team.explaining():
            self._tell(WriteBlock(block))
            for rank, heads in enumerate(self._heads[1:], 1):
                self._collectives.give(torch.cat([part[heads].reshape(-1) for part in parts]), rank)
        self._own.write_block(block, [part[self._heads[0]] for part in parts])


def follow_read(cache: KVStorage, block: int, collectives: Collectives) -> None:
    """Do on another rank what `LeadingCache.read_block` asks for."""
    collectives.give(torch.cat([part.reshape(-1) for part in cache.read_block(block)]), 0)


def follow_write(cache: KVStorage, block: int, collectives: Collectives) -> None:
    """Do on another rank what `LeadingCache.write_block` asks for."""
    room = cache.room_for(block)
    collectives.take(piece := torch.empty(sum(part.nbytes for part in room), dtype=torch.uint8), 0)
    cache.write_block(block, _parted(piece, room, slice(None)))


def _set(whole: Sequence[Tensor], heads: slice, parts: Sequence[Tensor]) -> None:
    for target, part in zip(whole, parts, strict=True):
        target[heads] = part


def _num_bytes(whole: Sequence[Tensor], heads: slice) -> int:
    return sum(part[heads].nbytes for part in whole)


def _parted(piece: Tensor, like: Sequence[Tensor], heads: slice) -> list[Tensor]:
    """Cut what has travelled into the parts of some heads."""
    shapes = [part[heads].shape for part in like]
    sizes = [shape.numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(torch.split(piece, sizes), shapes, strict=True)]
