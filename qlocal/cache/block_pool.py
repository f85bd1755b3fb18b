"""Which blocks are held, free, or free but still worth something. No torch: blocks are numbers here.

A remembered block has known content (a hash chain back to the first token) and can be shared while it is held
and taken up again after it was freed, until its place is needed: the least recently used one goes first.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

ROOT_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Content:
    """What a block holds: `token_ids` after the context that `parent` stands for; `digest` stands for both.

    start: tokens of that context, 0 where whoever made this does not need them."""

    parent: bytes
    token_ids: tuple[int, ...]
    digest: bytes
    start: int = field(default=0, compare=False)


def root_digest(fingerprint: str) -> bytes:
    """Return what the empty context of one model, cache type and rotary scaling is called."""
    return hashlib.blake2b(fingerprint.encode(), digest_size=ROOT_DIGEST_BYTES).digest()


def content_after(parent: bytes, token_ids: Sequence[int], start: int = 0) -> Content:
    """Return the content of a block with `token_ids` after the context `parent`, which has `start` tokens."""
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    digest = hashlib.blake2b(parent + packed, digest_size=ROOT_DIGEST_BYTES).digest()
    return Content(parent, tuple(token_ids), digest, start)


class BlockPool:
    """Reference counts, the free list and the memory of contents for `num_blocks` blocks."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._remembered: OrderedDict[int, None] = OrderedDict()  # free blocks with content, oldest first
        self._contents: dict[int, Content] = {}
        self._by_digest: dict[bytes, int] = {}
        self._children: dict[bytes, dict[int, None]] = {}  # blocks by the context that they follow

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, remembered ones included."""
        return len(self._empty) + len(self._remembered)

    def next_victim(self) -> tuple[int, Content] | None:
        """Return the block whose memory `take` would give up next, None while there are empty ones."""
        if self._empty or not self._remembered:
            return None
        block = next(iter(self._remembered))
        return block, self._contents[block]

    def remembered(self) -> list[tuple[int, Content]]:
        """Return free blocks with content, the most recently used first."""
        return [(block, self._contents[block]) for block in reversed(self._remembered)]

    def is_free(self, block: int) -> bool:
        return self._num_holders[block] == 0

    def take(self) -> int:
        """Hold a block for new content; the least recently used memory is given up when no block is empty."""
        assert self.num_free, "admission reserves every block before a sequence asks for it"
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._remembered.popitem(last=False)
            self._forget(block)
        self._num_holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a remembered block as well, or again."""
        self._num_holders[block] += 1
        self._remembered.pop(block, None)

    def touch(self, block: int) -> None:
        """Note that the memory of a block was used just now."""
        if block in self._remembered:
            self._remembered.move_to_end(block)

    def give_back(self, block: int) -> None:
        """Hold it no longer. A block with content is kept in memory until its place is needed."""
        assert self._num_holders[block] > 0, f"block {block} is given back more often than it was taken"
        self._num_holders[block] -= 1
        if self._num_holders[block]:
            return
        if block in self._contents:
            self._remembered[block] = None
        else:
            self._empty.append(block)

    def remember(self, block: int, content: Content) -> None:
        """Note what a held block contains. The first of several blocks with the same content is the one found."""
        self._forget(block)
        if content.digest in self._by_digest:
            return
        self._contents[block] = content
        self._by_digest[content.digest] = block
        self._children.setdefault(content.parent, {})[block] = None

    def find(self, content: Content) -> int | None:
        """Return the block with exactly this content."""
        return self._by_digest.get(content.digest)

    def find_longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """Return (block, n) whose first n tokens after `parent` agree with `token_ids` for the largest n > 0."""
        best: tuple[int, int] | None = None
        for block in self._children.get(parent, ()):
            length = common_prefix(self._contents[block].token_ids, token_ids)
            if length > (best[1] if best else 0):
                best = (block, length)
        return best

    def _forget(self, block: int) -> None:
        content = self._contents.pop(block, None)
        if content is None:
            return
        del self._by_digest[content.digest]
        siblings = self._children[content.parent]
        del siblings[block]
        if not siblings:
            del self._children[content.parent]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
