"""Blocks of a card's cache in host memory, least recently used out first. For what the cards have no room for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

from qlocal.cache.block_pool import Content, common_prefix
from qlocal.cache.tiers import BlockAccess

GiveUp = Callable[[Content, list[Tensor]], None]
"""What is done with a block for which there is no room here any more."""


class HostTier:
    """Copies of blocks, at most `max_bytes` of them; what has no room is given to `give_up`."""

    def __init__(self, cache: BlockAccess, max_bytes: int, give_up: GiveUp = lambda content, parts: None) -> None:
        self._cache = cache
        self._max_bytes = max_bytes
        self._give_up = give_up
        self._held: OrderedDict[bytes, tuple[Content, list[Tensor]]] = OrderedDict()
        self.num_bytes = 0

    def holds(self, content: Content) -> bool:
        """See `Tier.holds`."""
        return content.digest in self._held

    def will_load(self, contents: Sequence[Content]) -> None:
        """See `Tier.will_load`; it is all in memory."""

    def load(self, content: Content, block: int) -> bool:
        """See `Tier.load`."""
        found = self._held.get(content.digest)
        if found is None:
            return False
        self._held.move_to_end(content.digest)
        self._cache.write_block(block, found[1])
        return True

    def longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[Content, int] | None:
        """See `Tier.longest`."""
        found = ((c, common_prefix(c.token_ids, token_ids)) for c, _ in self._held.values() if c.parent == parent)
        best = max(found, key=lambda one: one[1], default=None)
        return None if best is None or best[1] == 0 else best

    def keep(self, content: Content, block: int) -> None:
        """See `Tier.keep`."""
        if content.digest in self._held:
            self._held.move_to_end(content.digest)
            return
        parts = [part.clone() for part in self._cache.read_block(block)]
        self._held[content.digest] = content, parts
        self.num_bytes += _bytes_of(parts)
        while self.num_bytes > self._max_bytes and self._held:
            _, (oldest, given_up) = self._held.popitem(last=False)
            self.num_bytes -= _bytes_of(given_up)
            self._give_up(oldest, given_up)


def _bytes_of(parts: Sequence[Tensor]) -> int:
    return sum(part.nbytes for part in parts)
