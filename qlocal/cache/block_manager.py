"""Block tables of the running sequences, and reuse of what earlier ones computed.

Admission reserves the worst case of a sequence, so that none is preempted half way; blocks are taken only
when they are reached, so an unused reservation costs no memory of earlier conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qlocal.cache.block_pool import BlockPool, Content, content_after, root_digest
from qlocal.cache.tiers import Tier

CopyBlock = Callable[[int, int, int], None]
"""Copy the first n tokens of K and V: (source block, target block, n)."""


@dataclass
class BlockTable:
    """The blocks of one sequence in order. `num_reserved` more are promised; `digests` name the full ones.
    num_restored: tokens that came from beside the pool."""

    blocks: list[int] = field(default_factory=list)
    num_reserved: int = 0
    digests: list[bytes] = field(default_factory=list)
    num_restored: int = 0


class BlockManager:
    """Hands out block tables. `fingerprint` names the model, its cache type and rotary scaling."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        fingerprint: str,
        copy_block: CopyBlock,
        on_take: Callable[[int], None] = lambda block: None,
        tier: Tier | None = None,
    ) -> None:
        """on_take: told of every block that gets new content. tier: where blocks are kept beside the pool."""
        self.block_size = block_size
        self._on_take = on_take
        self._tier = tier
        self._pool = BlockPool(num_blocks)
        self._root = root_digest(f"{fingerprint} block_size={block_size}")
        self._copy_block = copy_block
        self._num_reserved = 0

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that are neither held nor promised."""
        return self._pool.num_free - self._num_reserved

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def admit(
        self, token_ids: Sequence[int], max_tokens: int, num_usable: int | None = None
    ) -> tuple[BlockTable, int] | None:
        """Reserve for a prompt and `max_tokens` more; return the table and how many tokens it already holds.

        The last token of the prompt is never among them: its logits are needed. None: there is no room now.
        num_usable: at most so many of the prompt's tokens are taken from what earlier sequences computed.
        """
        usable = token_ids[: len(token_ids) - 1][:num_usable]
        shared, digests = self._full_blocks_of(usable)
        # The last generated token is never an input, so it needs no place.
        num_new = self.blocks_for(len(token_ids) + max(max_tokens - 1, 0)) - len(shared)
        num_revived = sum(self._pool.is_free(block) for block in shared)
        if num_new + num_revived > self.num_free:
            return None
        for block in shared:
            self._pool.share(block)
        self._num_reserved += num_new
        table = BlockTable(shared, num_new, digests)
        table.num_restored = self._restore(table, usable)
        num_cached = len(table.blocks) * self.block_size
        return table, num_cached + self._copy_tail(table, usable[num_cached:])

    def held(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt `admit` would find computed, and change nothing.

        Of blocks beside the pool only whole ones are counted: for a part of one their files would have to be opened.
        """
        usable = token_ids[: len(token_ids) - 1]
        shared, digests = self._full_blocks_of(usable)
        parent, num_held = (digests or [self._root])[-1], len(shared) * self.block_size
        while self._tier is not None and num_held + self.block_size <= len(usable):
            content = content_after(parent, usable[num_held : num_held + self.block_size], num_held)
            if not self._tier.holds(content):
                break
            parent, num_held = content.digest, num_held + self.block_size
        found = self._pool.find_longest(parent, usable[num_held : num_held + self.block_size])
        return num_held + (found[1] if found is not None else 0)

    def full_contents(self, token_ids: Sequence[int]) -> list[Content]:
        """Return what the full blocks of a prompt hold."""
        contents, parent = list[Content](), self._root
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            contents.append(content_after(parent, token_ids[start : start + self.block_size], start))
            parent = contents[-1].digest
        return contents

    def find(self, content: Content) -> int | None:
        """Return the block of the pool that holds exactly this content."""
        return self._pool.find(content)

    def remembered(self) -> list[tuple[int, Content]]:
        """Return the free blocks with content, the most recently used first."""
        return self._pool.remembered()

    def reach(self, table: BlockTable, num_tokens: int) -> None:
        """Take the blocks that a sequence of `num_tokens` needs, out of its reservation."""
        while len(table.blocks) < self.blocks_for(num_tokens):
            self._take(table)

    def commit(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Remember the blocks that are full now that the first `num_computed` of `token_ids` are computed."""
        while (len(table.digests) + 1) * self.block_size <= num_computed:
            index = len(table.digests)
            start = index * self.block_size
            content = content_after(self._parent(table), token_ids[start : start + self.block_size], start)
            self._pool.remember(table.blocks[index], content)
            table.digests.append(content.digest)

    def release(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Give everything back; what was computed stays findable, the partial last block included."""
        self.commit(table, token_ids, num_computed)
        start = len(table.digests) * self.block_size
        if start < num_computed:
            content = content_after(self._parent(table), token_ids[start:num_computed], start)
            self._pool.remember(table.blocks[len(table.digests)], content)
        self._give_back(table)

    def discard(self, table: BlockTable) -> None:
        """Give everything back after an error; what was not committed is never found again."""
        self._give_back(table)

    def _give_back(self, table: BlockTable) -> None:
        # The end of a context goes first: its beginning is more likely to be asked for again.
        for block in reversed(table.blocks):
            self._pool.give_back(block)
        self._num_reserved -= table.num_reserved
        table.blocks, table.num_reserved, table.digests = [], 0, []

    def _take(self, table: BlockTable) -> int:
        assert table.num_reserved > 0, "a sequence grows no further than admission reserved"
        victim = self._pool.next_victim()
        if victim is not None and self._tier is not None:
            self._tier.keep(victim[1], victim[0])
        block = self._pool.take()
        self._on_take(block)
        self._num_reserved -= 1
        table.num_reserved -= 1
        table.blocks.append(block)
        return block

    def _parent(self, table: BlockTable) -> bytes:
        return table.digests[-1] if table.digests else self._root

    def _full_blocks_of(self, token_ids: Sequence[int]) -> tuple[list[int], list[bytes]]:
        """Return the remembered blocks that hold the beginning of `token_ids`, and their digests."""
        blocks: list[int] = []
        digests = [self._root]
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            content = content_after(digests[-1], token_ids[start : start + self.block_size], start)
            block = self._pool.find(content)
            if block is None:
                break
            blocks.append(block)
            digests.append(content.digest)
        return blocks, digests[1:]

    def _restore(self, table: BlockTable, token_ids: Sequence[int]) -> int:
        """Fetch the full blocks that follow in `token_ids` from beside the pool; return their number of tokens."""
        if self._tier is None:
            return 0
        first, contents = len(table.blocks), list[Content]()
        parent = self._parent(table)
        for start in range(first * self.block_size, len(token_ids) - self.block_size + 1, self.block_size):
            content = content_after(parent, token_ids[start : start + self.block_size], start)
            if not self._tier.holds(content):
                break
            contents.append(content)
            parent = content.digest
        self._tier.will_load(contents)
        for content in contents:
            if not self._fetch(table, content):
                break
            self._pool.remember(table.blocks[-1], content)
            table.digests.append(content.digest)
        return (len(table.blocks) - first) * self.block_size

    def _restore_tail(self, table: BlockTable, content: Content, length: int) -> int:
        if not self._fetch(table, content):
            return 0
        table.num_restored += length
        return length

    def _fetch(self, table: BlockTable, content: Content) -> bool:
        """Add a block with a content that is kept beside the pool; False, and nothing has changed, where it is not."""
        assert self._tier is not None, "the caller asks whether there is one"
        block = self._take(table)
        if self._tier.load(content, block):
            return True
        table.blocks.pop()
        self._pool.give_back(block)
        table.num_reserved += 1
        self._num_reserved += 1
        return False

    def _copy_tail(self, table: BlockTable, rest: Sequence[int]) -> int:
        """Start a new block with the longest beginning of `rest` that some block holds; return its length."""
        parent, rest = self._parent(table), rest[: self.block_size]
        found = self._pool.find_longest(parent, rest) if rest else None
        kept = self._tier.longest(parent, rest) if rest and self._tier is not None else None
        if kept is not None and kept[1] > (found[1] if found is not None else 0):
            return self._restore_tail(table, *kept)
        if found is None:
            return 0
        source, length = found
        self._pool.touch(source)  # its own place is taken only when there is no other
        target = self._take(table)
        if target != source:
            self._copy_block(source, target, length)
        return length
