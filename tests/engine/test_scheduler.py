"""Who computes how many tokens in a step."""

from __future__ import annotations

from qlocal.cache.block_manager import BlockManager
from qlocal.engine.scheduler import Scheduler
from qlocal.engine.sequence import Sequence
from tests.engine.running import request


def scheduler_of(num_blocks: int = 100, slots: int = 8, prefill_chunk: int = 12) -> Scheduler:
    blocks = BlockManager(num_blocks, 4, "model", lambda source, target, count: None)
    return Scheduler(blocks, slots, prefill_chunk)


def waiting(scheduler: Scheduler, *lengths: int, max_tokens: int = 1) -> list[Sequence]:
    for index, length in enumerate(lengths):
        prompt = [index + 1] * length
        scheduler.waiting.append(Sequence.of(request(f"r{index}", prompt, max_tokens)))
    return list(scheduler.waiting)


def lengths_of_step(scheduler: Scheduler) -> dict[str, int]:
    batch = scheduler.next_batch()
    lengths = {run.sequence.request_id: run.length for run in batch}
    scheduler.commit(batch)
    return lengths


def test_prompts_share_the_chunk_and_short_ones_leave_theirs_to_the_rest() -> None:
    scheduler = scheduler_of()
    waiting(scheduler, 40, 2, 30)
    assert lengths_of_step(scheduler) == {"r1": 2, "r2": 5, "r0": 5}


def test_decoding_goes_on_while_a_prompt_is_read() -> None:
    scheduler = scheduler_of()
    (first,) = waiting(scheduler, 5, max_tokens=9)
    assert lengths_of_step(scheduler) == {"r0": 5}
    first.token_ids.append(7)
    scheduler.waiting.append(Sequence.of(request("late", [9] * 30, 1)))
    assert lengths_of_step(scheduler) == {"r0": 1, "late": 12}


def test_steps_that_take_long_read_less_of_a_prompt_and_short_ones_more_again() -> None:
    scheduler = scheduler_of(num_blocks=2000, prefill_chunk=1024)
    waiting(scheduler, 6000)
    lengths = []
    for seconds in (2.0, 2.0, 0.5, 2.0, 2.0, 0.5, 0.1, 0.1):
        batch = scheduler.next_batch()
        lengths.append(batch[0].length)
        scheduler.note_step(batch, seconds)
        scheduler.commit(batch)
    assert lengths == [1024, 512, 256, 256, 256, 256, 256, 512]


def test_admission_keeps_the_order_of_arrival() -> None:
    scheduler = scheduler_of(num_blocks=4)
    first, large, small = waiting(scheduler, 8, 12, 1)
    assert lengths_of_step(scheduler) == {"r0": 8}
    assert list(scheduler.waiting) == [large, small]
    scheduler.finish(first)
    assert lengths_of_step(scheduler) == {"r2": 1, "r1": 12}
    assert not scheduler.waiting


def test_no_more_sequences_run_than_there_are_slots() -> None:
    scheduler = scheduler_of(slots=2)
    waiting(scheduler, 3, 3, 3)
    assert set(lengths_of_step(scheduler)) == {"r0", "r1"}


def test_a_sequence_that_still_waits_can_be_taken_out() -> None:
    scheduler = scheduler_of(slots=1)
    _, second = waiting(scheduler, 3, 3)
    scheduler.next_batch()
    scheduler.finish(second)
    assert not scheduler.waiting
    assert [s.request_id for s in scheduler.running] == ["r0"]
