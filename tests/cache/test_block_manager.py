"""Block tables: admission, reuse of prefixes, copies on write. The storage here is a list of tokens a block."""

from __future__ import annotations

import random

import pytest

from qlocal.cache.block_manager import BlockManager, BlockTable

BLOCK = 4


class TokenStorage:
    """Stands for K and V: a block holds the tokens that were computed into it."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks: list[list[int]] = [[] for _ in range(num_blocks)]
        self.num_copied = 0

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        self.blocks[target] = self.blocks[source][:num_tokens]
        self.num_copied += 1

    def compute(self, table: BlockTable, token_ids: list[int], start: int) -> None:
        for position in range(start, len(token_ids)):
            block = self.blocks[table.blocks[position // BLOCK]]
            block[position % BLOCK :] = [token_ids[position]]

    def contents(self, table: BlockTable, num_tokens: int) -> list[int]:
        tokens = [t for block in table.blocks for t in self.blocks[block]]
        return tokens[:num_tokens]


def manager_of(num_blocks: int) -> tuple[BlockManager, TokenStorage]:
    storage = TokenStorage(num_blocks)
    return BlockManager(num_blocks, BLOCK, "model", storage.copy_block), storage


def run(manager: BlockManager, storage: TokenStorage, token_ids: list[int], prompt_length: int) -> int:
    """Let one sequence live from admission to release; return how many tokens it did not compute."""
    told = manager.held(token_ids[:prompt_length])
    admitted = manager.admit(token_ids[:prompt_length], len(token_ids) - prompt_length)
    assert admitted is not None
    table, num_cached = admitted
    assert told == num_cached, "what is told before is what is found"
    assert storage.contents(table, num_cached) == token_ids[:num_cached]
    num_computed = max(prompt_length, len(token_ids) - 1)  # the last generated token is never an input
    manager.reach(table, num_computed)
    storage.compute(table, token_ids[:num_computed], num_cached)
    manager.release(table, token_ids, num_computed)
    return num_cached


def test_a_second_turn_pays_only_for_its_new_tokens() -> None:
    manager, storage = manager_of(16)
    first = list(range(10))
    assert run(manager, storage, first, 6) == 0
    assert run(manager, storage, [*first, 50, 51, 52], 12) == 9


def test_an_edit_keeps_what_stands_before_it() -> None:
    manager, storage = manager_of(16)
    run(manager, storage, list(range(12)), 11)
    assert run(manager, storage, [0, 1, 2, 3, 4, 5, 99, 98], 8) == 6
    assert storage.num_copied == 1


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    manager, storage = manager_of(8)
    run(manager, storage, list(range(9)), 8)
    assert run(manager, storage, list(range(8)), 8) == 7


def test_running_sequences_share_full_blocks_and_copy_the_tail() -> None:
    manager, storage = manager_of(8)
    prompt = list(range(6))
    first = manager.admit(prompt, 1)
    assert first is not None
    manager.reach(first[0], 6)
    storage.compute(first[0], prompt, 0)
    manager.commit(first[0], prompt, 6)
    second = manager.admit(prompt, 1)
    assert second is not None
    assert second[1] == 4
    assert second[0].blocks == first[0].blocks[:1]
    manager.reach(second[0], 6)
    assert second[0].blocks[1] != first[0].blocks[1]


def test_admission_reserves_the_worst_case_and_refuses_beyond_it() -> None:
    manager, _ = manager_of(4)
    first = manager.admit([1, 2, 3], 8)  # 10 tokens have a place: 3 blocks
    assert first is not None
    assert manager.num_free == 1
    assert manager.admit([4, 5, 6], 3) is None
    second = manager.admit([4, 5, 6], 2)
    assert second is not None
    manager.reach(first[0], 10)
    manager.reach(second[0], 4)
    assert manager.num_free == 0
    with pytest.raises(AssertionError, match="grows no further"):
        manager.reach(second[0], 5)
    manager.release(first[0], list(range(10)), 10)
    assert manager.num_free == 3


def test_an_unused_reservation_costs_no_memory_of_earlier_conversations() -> None:
    manager, storage = manager_of(8)
    run(manager, storage, list(range(12)), 11)
    unrelated = manager.admit([100, 101], 26)
    assert unrelated is not None
    manager.reach(unrelated[0], 2)
    manager.release(unrelated[0], [100, 101], 2)
    assert run(manager, storage, list(range(12)), 12) == 11


def test_the_tail_is_taken_over_where_no_other_block_is_left() -> None:
    manager, storage = manager_of(1)
    run(manager, storage, [1, 2, 3], 2)
    assert run(manager, storage, [1, 2, 9], 3) == 2
    assert storage.num_copied == 0


def test_discarded_blocks_are_never_found_again() -> None:
    manager, storage = manager_of(8)
    admitted = manager.admit([1, 2, 3], 4)
    assert admitted is not None
    manager.reach(admitted[0], 3)
    storage.compute(admitted[0], [1, 2, 3], 0)
    manager.discard(admitted[0])
    assert manager.num_free == 8
    assert run(manager, storage, [1, 2, 3], 3) == 0


@pytest.mark.parametrize("seed", range(20))
def test_reused_tokens_are_always_the_right_ones_whatever_the_order(seed: int) -> None:
    choose = random.Random(seed)
    manager, storage = manager_of(12)
    running: list[tuple[BlockTable, list[int]]] = []
    for _ in range(400):
        if running and (len(running) == 4 or choose.random() < 0.4):
            table, token_ids = running.pop(choose.randrange(len(running)))
            if choose.random() < 0.1:
                manager.discard(table)
            else:
                manager.release(table, token_ids, choose.randint(len(token_ids) - 1, len(token_ids)))
            continue
        token_ids = [choose.randrange(2) for _ in range(choose.randint(1, 20))]
        max_tokens = choose.randrange(8)
        admitted = manager.admit(token_ids, max_tokens)
        if admitted is None:
            continue
        table, num_cached = admitted
        assert num_cached < len(token_ids)
        assert storage.contents(table, num_cached) == token_ids[:num_cached]
        manager.reach(table, len(token_ids))
        storage.compute(table, token_ids, num_cached)
        assert storage.contents(table, len(token_ids)) == token_ids
        manager.commit(table, token_ids, len(token_ids))
        running.append((table, token_ids))
        for other, held in running:
            assert storage.contents(other, len(held)) == held
    for table, token_ids in running:
        manager.release(table, token_ids, len(token_ids))
    assert manager.num_free == 12
