"""A draft model beside the model: same answers, its cache in step, nothing computed twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qlocal.engine.engine import Engine
from qlocal.engine.sequence import Sequence as Running
from qlocal.engine.speculation.draft_model import DraftModel
from qlocal.engine.speculation.guesser import Guess, Kind
from qlocal.engine.speculation.loading import draft_model
from qlocal.engine.speculation.speculator import Speculator
from qlocal.layers.paged_attention import TokenRun
from qlocal.plan import make_plan
from qlocal.plan.plan import DraftPlan
from qlocal.protocol import Sampling
from tests.engine.running import VOCAB, engine_of, request, run
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

BLOCK_SIZE, CHUNK = 16, 32


class Eager(Speculator):
    """Asks its draft model in every step, whether it pays or not."""

    def _draft_length(self, sequence: Running, longest: int, num_sequences: int, least: float) -> int:
        assert self._draft is not None
        return min(4, longest) if longest > 0 and self._draft.can_guess(sequence) else 0

    def note_prompt(self) -> None:
        self._since_plain = 0

    def guess(self, sequences: Sequence[Running]) -> None:
        self._since_plain = 0
        super().guess(sequences)


@pytest.fixture(scope="module")
def qwen() -> MemoryCheckpoint:
    return MemoryCheckpoint("qwen2")


@pytest.fixture(scope="module")
def other() -> MemoryCheckpoint:
    """Another model with fewer rows in its embedding than the large one has."""
    return MemoryCheckpoint("qwen2", {"vocab_size": VOCAB - 16, "num_hidden_layers": 1, "hidden_size": 64}, seed=7)


def drafted(
    checkpoint: MemoryCheckpoint, draft: MemoryCheckpoint, *, num_blocks: int = 60, kv: str | None = None
) -> tuple[Engine, DraftModel, list[int]]:
    """Return an engine, its draft model, and the sizes of the steps that the draft has computed so far."""
    plan = make_plan(checkpoint, ["cpu"], dtype="float32", block_size=BLOCK_SIZE, kv=kv, prefill_chunk=CHUNK)
    placed = DraftPlan("draft", "cpu", draft.config.num_hidden_layers, 0, 0, 0, 0)
    with torch.inference_mode():
        model = draft_model(draft, replace(plan, draft=placed, num_blocks=num_blocks))
    sizes: list[int] = []
    forward = model._runner.forward

    def counted(input_ids: Sequence[int], runs: Sequence[TokenRun]) -> Tensor:
        sizes.append(len(input_ids))
        return forward(input_ids, runs)

    model._runner.forward = counted  # type: ignore[method-assign]
    engine = engine_of(checkpoint, num_blocks=num_blocks, block_size=BLOCK_SIZE, kv=kv, speculator=Eager(model))
    return engine, model, sizes


@pytest.mark.parametrize("kv", [None, "q8"])
def test_answers_are_those_without_a_draft_model(
    qwen: MemoryCheckpoint, other: MemoryCheckpoint, kv: str | None
) -> None:
    samplings = [Sampling(temperature=0.0), Sampling(temperature=0.9, seed=4, top_k=30), Sampling(seed=1, min_p=0.05)]
    requests = [request(f"r{i}", random_ids(300, 5 + 21 * i, seed=i), 30, s) for i, s in enumerate(samplings)]
    plain = run(engine_of(qwen, block_size=BLOCK_SIZE, kv=kv), *requests)
    for draft in (qwen, other):
        engine, _, _ = drafted(qwen, draft, kv=kv)
        found = run(engine, *requests)
        assert {k: a.token_ids for k, a in found.items()} == {k: a.token_ids for k, a in plain.items()}


def test_a_draft_that_is_the_model_is_always_right(qwen: MemoryCheckpoint) -> None:
    engine, _, sizes = drafted(qwen, qwen)
    finished = run(engine, request("a", random_ids(VOCAB, 40), 41))["a"].finished
    assert finished is not None
    assert finished.accepted_tokens == finished.drafted_tokens >= 30
    # The prompt in two chunks; then four guessed tokens a time of which the last is read with the next one's first.
    assert sum(sizes) <= 40 + 41 + 4


def test_the_draft_reads_each_token_once_over_turns_and_after_edits(
    qwen: MemoryCheckpoint, other: MemoryCheckpoint
) -> None:
    engine, _, sizes = drafted(qwen, other)
    prompt = random_ids(300, 70)
    first = run(engine, request("a", prompt, 9))["a"].token_ids
    sizes.clear()
    turn = [*prompt, *first, *random_ids(300, 10, seed=3)]
    run(engine, request("b", turn, 2))
    assert sum(sizes) < 10 + 9 + 8, "the prompt of the first turn is in the draft's cache too"
    sizes.clear()
    edited = [*prompt[:40], *random_ids(300, 5, seed=5)]
    run(engine, request("c", edited, 2))
    assert sum(sizes) < 5 + 8 + 8


def test_blocks_that_others_took_are_read_again(qwen: MemoryCheckpoint) -> None:
    """A pool so small that every request takes the blocks of the last one."""
    engine, _, _ = drafted(qwen, qwen, num_blocks=4)
    for index in range(5):
        prompt = random_ids(300, 30, seed=index)
        finished = run(engine, request("a", prompt, 20))["a"].finished
        assert finished is not None
        assert finished.accepted_tokens == finished.drafted_tokens > 10


def test_what_the_draft_cannot_know_is_left_to_the_context(qwen: MemoryCheckpoint, other: MemoryCheckpoint) -> None:
    engine, _, sizes = drafted(qwen, other)
    run(engine, request("a", [5, VOCAB - 1, 6], 8))
    assert sizes == []


def test_a_draft_that_costs_more_than_it_gives_is_left_alone_and_tried_again(
    qwen: MemoryCheckpoint, other: MemoryCheckpoint
) -> None:
    _, model, _ = drafted(qwen, other)
    speculator = Speculator(model)
    sequence = Running.of(request("a", [1, 2, 3], 500))
    asked = 0
    model.can_guess = lambda _: True  # type: ignore[method-assign]
    for token_s, expected in ((0.2, 2), (0.001, 100)):
        model._times = deque([token_s])
        asked = 0
        for _ in range(100):
            speculator._times.note(1, 0.1, is_plain=True)
            asked += speculator._draft_length(sequence, 7, 1, 1.0) > 0
        assert asked == pytest.approx(expected, abs=1)


def test_a_draft_whose_guesses_are_wrong_gets_shorter_ones(qwen: MemoryCheckpoint) -> None:
    _, model, _ = drafted(qwen, qwen)
    model._times = deque([0.001])
    model.can_guess = lambda _: True  # type: ignore[method-assign]
    model.keep = lambda _: None  # type: ignore[method-assign]
    speculator = Speculator(model)
    sequence = Running.of(request("a", [1, 2, 3], 500))
    lengths = []
    for chosen in [[7, 7, 7]] * 40 + [[1]] * 40:
        speculator._times.note(1, 0.1, is_plain=True)
        lengths.append(speculator._draft_length(sequence, 7, 1, 1.0))
        sequence.guesser.guess = Guess(Kind.DRAFT, [7, 7], is_tried=True)
        speculator.judge(sequence, chosen)
    assert lengths[39] == 7
    assert lengths[-1] <= 1
