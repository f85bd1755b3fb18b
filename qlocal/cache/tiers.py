"""Where blocks are kept that the pool has no place for: what the block manager asks of host memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from qlocal.cache.block_pool import Content


class BlockAccess(Protocol):
    """What blocks of the cache hold, in pieces (Hk, bytes) uint8 on the host: K and V of every layer, of all heads."""

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        ...

    def read_block(self, block: int) -> list[Tensor]:
        """Return what a block holds; it may be the cache's own memory, or what the next call uses again."""
        ...

    def room_for(self, block: int) -> list[Tensor]:
        """Return memory for what is to be written into a block."""
        ...

    def write_block(self, block: int, parts: Sequence[Tensor]) -> None:
        """Give a block its content, which `room_for` may have given the memory for."""
        ...


class Tier(Protocol):
    """Blocks by content, beside the pool. Slower to reach, quicker than to compute them."""

    def holds(self, content: Content) -> bool:
        """Say whether exactly this content is kept."""
        ...

    def will_load(self, contents: Sequence[Content]) -> None:
        """Prepare for all of these, in their order."""
        ...

    def load(self, content: Content, block: int) -> bool:
        """Put what is kept of exactly this content into a block of the cache; False where nothing is."""
        ...

    def longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[Content, int] | None:
        """Return (content, n) of what is kept after `parent` whose first n tokens agree, for the largest n > 0."""
        ...

    def keep(self, content: Content, block: int) -> None:
        """Take over what a block holds, which is about to get other content."""
        ...


class Chain:
    """Several tiers as one, asked in their order; what is given up goes to the first that keeps anything."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = list(tiers)

    def holds(self, content: Content) -> bool:
        return any(tier.holds(content) for tier in self._tiers)

    def will_load(self, contents: Sequence[Content]) -> None:
        for tier in self._tiers:
            tier.will_load(contents)

    def load(self, content: Content, block: int) -> bool:
        return any(tier.load(content, block) for tier in self._tiers)

    def longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[Content, int] | None:
        found = (tier.longest(parent, token_ids) for tier in self._tiers)
        return max((one for one in found if one is not None), key=lambda one: one[1], default=None)

    def keep(self, content: Content, block: int) -> None:
        for tier in self._tiers[:1]:
            tier.keep(content, block)
