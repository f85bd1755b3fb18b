"""Reference counts, free blocks and remembered contents."""

from __future__ import annotations

import pytest

from qlocal.cache.block_pool import BlockPool, content_after, root_digest

ROOT = root_digest("model")


def test_a_block_is_free_again_when_its_last_holder_gives_it_back() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.share(block)
    pool.give_back(block)
    assert pool.num_free == 1
    pool.give_back(block)
    assert pool.num_free == 2
    with pytest.raises(AssertionError, match="given back more often"):
        pool.give_back(block)


def test_a_freed_block_is_found_by_its_content_until_its_place_is_needed() -> None:
    pool = BlockPool(2)
    block = pool.take()
    content = content_after(ROOT, [1, 2, 3])
    pool.remember(block, content)
    pool.give_back(block)
    assert pool.find(content) == block
    assert pool.take() != block
    assert pool.find(content) == block
    assert pool.take() == block
    assert pool.find(content) is None


def test_the_least_recently_used_memory_is_given_up_first() -> None:
    pool = BlockPool(3)
    contents = [content_after(ROOT, [i]) for i in range(3)]
    for content in contents:
        pool.remember(pool.take(), content)
    for block in range(3):
        pool.give_back(block)
    oldest, middle, _ = (pool.find(content) for content in contents)
    assert oldest is not None
    pool.touch(oldest)
    assert pool.take() == middle


def test_the_longest_common_beginning_wins() -> None:
    pool = BlockPool(3)
    blocks = []
    for token_ids in ([1, 2, 3, 4], [1, 2, 9], [7]):
        blocks.append(pool.take())
        pool.remember(blocks[-1], content_after(ROOT, token_ids))
    assert pool.find_longest(ROOT, [1, 2, 3, 8]) == (blocks[0], 3)
    assert pool.find_longest(ROOT, [1, 2, 9, 9]) == (blocks[1], 3)
    assert pool.find_longest(ROOT, [5]) is None
    assert pool.find_longest(root_digest("another model"), [1, 2, 3]) is None


def test_the_same_tokens_after_another_context_are_other_content() -> None:
    after_one, after_two = content_after(ROOT, [1]), content_after(ROOT, [2])
    assert content_after(after_one.digest, [5]).digest != content_after(after_two.digest, [5]).digest
    assert root_digest("model float16") != root_digest("model float32")
