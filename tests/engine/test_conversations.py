"""Long conversations through the engine: every prompt token is computed once, whatever is edited or branched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from torch import Tensor

from qlocal.engine.engine import Engine
from qlocal.engine.model_runner import Between
from qlocal.engine.speculation.speculator import Speculator
from qlocal.layers.card_draws import Draws
from qlocal.layers.paged_attention import TokenRun
from tests.engine.running import engine_of, request, run
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

TURNS, ANSWER = 30, 12
WIDE = {"max_position_embeddings": 4096}


@dataclass
class Conversation:
    """A conversation and the tokens that the layers have computed for it, prompts and answers apart."""

    engine: Engine
    history: list[int] = field(default_factory=list)
    computed: int = 0
    turns: int = 0

    def __post_init__(self) -> None:
        forward = self.engine._runner.forward

        def counted(
            input_ids: Sequence[int],
            runs: Sequence[TokenRun],
            between: Between | None = None,
            draws: Draws | None = None,
        ) -> Tensor:
            self.computed += len(input_ids)
            return forward(input_ids, runs, between, draws)

        self.engine._runner.forward = counted  # type: ignore[method-assign]

    def say(self, new: list[int]) -> int:
        """Add a turn and its answer; return how many tokens beyond the answer's own were computed for it."""
        self.turns += 1
        before, prompt = self.computed, [*self.history, *new]
        answer = run(self.engine, request(f"turn {self.turns}", prompt, ANSWER))[f"turn {self.turns}"]
        assert answer.finished is not None and answer.started is not None
        wrong = answer.finished.drafted_tokens - answer.finished.accepted_tokens
        self.history = [*prompt, *answer.token_ids]
        # The last token of an answer is chosen, but not computed until the next turn.
        return self.computed - before - (ANSWER - 1) - wrong


def turn(number: int) -> list[int]:
    return random_ids(300, 5 + number * 7 % 40, seed=number)


@pytest.mark.parametrize("kv", [None, "q4"])
@pytest.mark.parametrize("guesses", [False, True])
def test_thirty_turns_compute_each_prompt_token_once(kv: str | None, guesses: bool) -> None:
    engine = engine_of(
        MemoryCheckpoint("qwen2", WIDE), kv=kv, prefill_chunk=64, speculator=Speculator() if guesses else None
    )
    talk = Conversation(engine)
    for number in range(TURNS):
        own = len(turn(number)) + (number > 0)  # and the last token of the answer before
        assert talk.say(turn(number)) == own
    spoken = sum(len(turn(number)) for number in range(TURNS))
    assert len(talk.history) == spoken + TURNS * ANSWER


def test_an_edit_computes_what_follows_it_alone() -> None:
    talk = Conversation(engine_of(MemoryCheckpoint("qwen2", WIDE), prefill_chunk=64))
    for number in range(10):
        talk.say(turn(number))
    kept = talk.history[:100]
    talk.history = kept
    assert talk.say([7, 8, 9]) <= 3 + 1, "at most the first token of the change is one that was there"


def test_branches_share_what_stands_before_them_and_each_goes_on_from_its_own_end() -> None:
    talk = Conversation(engine_of(MemoryCheckpoint("qwen2", WIDE), prefill_chunk=64))
    for number in range(5):
        talk.say(turn(number))
    trunk, branches = list(talk.history), []
    for branch in range(3):
        talk.history = list(trunk)
        assert talk.say([200 + branch, 1, 2]) == 3 + 1 - (branch > 0)
        branches.append(talk.history)
    for branch, history in enumerate(branches):
        talk.history = list(history)
        assert talk.say([50 + branch]) == 2
    talk.history = list(trunk[:-1])
    assert talk.say([trunk[-1]]) == 1, "the same question once more computes its last token for the logits"


def test_two_conversations_in_turns_do_not_cost_each_other_anything() -> None:
    engine = engine_of(MemoryCheckpoint("qwen2", WIDE), prefill_chunk=64)
    talk, histories = Conversation(engine), [[], []]
    for number in range(10):
        for side in (0, 1):
            talk.history = histories[side]
            new = [side, *turn(number)]
            assert talk.say(new) == len(new) + (number > 0)
            histories[side] = talk.history
