"""Guesses change no answer: not a greedy one, not a seeded one, and not the distribution of any other."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qlocal.engine.sampler import SamplingState, sample_run
from qlocal.engine.sequence import Sequence as Running
from qlocal.engine.speculation.guesser import Guess, Kind
from qlocal.engine.speculation.speculator import Speculator
from qlocal.protocol import Sampling
from tests.engine.running import GREEDY, VOCAB, engine_of, request, run
from tests.memory_checkpoint import MemoryCheckpoint, random_ids
from tests.naive_model import naive_logits


class Bold(Speculator):
    """Always guesses: what `next_ids` say comes after so many tokens, which may be anything."""

    def __init__(self, guess_after: dict[int, list[int]] | None = None) -> None:
        super().__init__()
        self._guess_after = guess_after

    def guess(self, sequences: Sequence[Running]) -> None:
        for sequence in sequences:
            room = min(7, sequence.num_remaining - 1)
            found = sequence.guesser.look_up(sequence.token_ids, room) if room > 0 else None
            token_ids = [] if found is None else found[1]
            if self._guess_after is not None:
                token_ids = self._guess_after.get(sequence.num_generated, [])[: max(room, 0)]
            if token_ids:
                sequence.guesser.guess = Guess(Kind.LONG, token_ids, is_tried=True)


@pytest.fixture(scope="module")
def qwen() -> MemoryCheckpoint:
    return MemoryCheckpoint("qwen2")


def test_greedy_answers_are_those_without_guesses_in_company_too(qwen: MemoryCheckpoint) -> None:
    prompts = [random_ids(VOCAB, 12, seed=i) * 3 for i in range(5)]
    requests = [request(f"r{i}", prompt, 40) for i, prompt in enumerate(prompts)]
    plain = run(engine_of(qwen), *requests)
    guessed = run(engine_of(qwen, speculator=Bold()), *requests)
    assert {k: a.token_ids for k, a in guessed.items()} == {k: a.token_ids for k, a in plain.items()}
    finished = [a.finished for a in guessed.values() if a.finished is not None]
    assert sum(f.accepted_tokens for f in finished) > 20
    assert all(f.drafted_tokens >= f.accepted_tokens and f.completion_tokens == 40 for f in finished)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, seed=5),
        Sampling(temperature=1.0, top_k=20, top_p=0.9, seed=6),
        Sampling(temperature=0.7, seed=7, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3),
        Sampling(temperature=0.0, top_logprobs=2),
    ],
)
def test_a_seed_gives_the_same_answer_however_much_is_guessed(qwen: MemoryCheckpoint, sampling: Sampling) -> None:
    prompt = random_ids(VOCAB, 10) * 2
    asked = request("a", prompt, 30, sampling)
    plain = run(engine_of(qwen), asked)["a"]
    right = {n: plain.token_ids[n : n + 4] for n in range(1, 30, 3)}
    half_right = {n: [*plain.token_ids[n : n + 2], 1, 2] for n in range(1, 30, 2)}
    for guess_after in (right, half_right):
        guessed = run(engine_of(qwen, speculator=Bold(guess_after)), asked)["a"]
        assert guessed.token_ids == plain.token_ids
        assert [p.token_id for p in guessed.logprobs] == [p.token_id for p in plain.logprobs]
        assert guessed.finished is not None and guessed.finished.accepted_tokens > 10


def test_limits_and_stop_tokens_hold_inside_an_accepted_run(qwen: MemoryCheckpoint) -> None:
    prompt = random_ids(VOCAB, 9)
    plain = run(engine_of(qwen), request("a", prompt, 12))["a"].token_ids
    speculator = Bold({n: plain[n : n + 6] for n in range(12)})
    for max_tokens in (1, 2, 5, 8):
        limited = run(engine_of(qwen, speculator=speculator), request("a", prompt, max_tokens))["a"]
        assert (limited.token_ids, limited.reason) == (plain[:max_tokens], "length")
    stop = plain[6]
    first = plain.index(stop)
    stopped = run(engine_of(qwen, speculator=speculator), request("a", prompt, 12, stop_ids=[stop]))["a"]
    assert (stopped.token_ids, stopped.reason) == (plain[:first], "stop")
    assert stopped.finished is not None and stopped.finished.completion_tokens == first + 1


@pytest.mark.parametrize("kv", [None, "q8"])
def test_what_is_remembered_after_wrong_guesses_is_right(qwen: MemoryCheckpoint, kv: str | None) -> None:
    prompt = random_ids(VOCAB, 21)
    plain = run(engine_of(qwen, kv=kv), request("a", prompt, 25))["a"].token_ids
    wrong = {n: [*plain[n : n + n % 4], 3, 4, 5] for n in range(1, 25)}
    engine = engine_of(qwen, kv=kv, speculator=Bold(wrong), block_size=16)
    assert run(engine, request("a", prompt, 25))["a"].token_ids == plain
    turn = [*prompt, *plain, *random_ids(VOCAB, 5, seed=4)]
    continued = run(engine, request("b", turn, 9))["b"]
    assert continued.started is not None and continued.started.cached_tokens == len(prompt) + 24
    assert continued.token_ids == run(engine_of(qwen, kv=kv), request("b", turn, 9))["b"].token_ids


class Fixed(SamplingState):
    """A sampling state whose random numbers are given."""

    def __init__(self, sampling: Sampling, size: int, uniforms: Sequence[float]) -> None:
        super().__init__(sampling, size, [])
        self._uniforms = iter(uniforms)

    def uniform(self) -> float:
        return next(self._uniforms)


def test_every_guess_leaves_the_joint_distribution_of_three_tokens_as_it_is() -> None:
    """All cases: 4 tokens whose chances are eighths, 8 values of each of three random numbers, 16 guesses."""
    eighths = torch.tensor([[4.0, 2, 1, 1], [1, 1, 5, 1], [2, 2, 2, 2], [0.0001, 3, 3, 2]])

    def row(last: int) -> Tensor:
        return (eighths[last] / 8).log()

    def generate(guess: Sequence[int], uniforms: Sequence[float]) -> tuple[int, ...]:
        state, token_ids = Fixed(Sampling(), 4, uniforms), [0]
        while len(token_ids) < 4:
            ahead = list(guess[: 3 - len(token_ids)]) if len(token_ids) == 1 else []
            rows = torch.stack([row(last) for last in (token_ids[-1], *ahead)])
            token_ids += [choice.token_id for choice in sample_run(rows, state, ahead) if choice is not None]
        return tuple(token_ids[1:])

    values = [(i + 0.5) / 8 for i in range(8)]
    expected: dict[tuple[int, ...], float] = {}
    for a, b, c in itertools.product(range(4), repeat=3):
        chance = math.prod((round(float(eighths[x][y])) for x, y in ((0, a), (a, b), (b, c))))
        if chance:
            expected[a, b, c] = chance
    for guess in itertools.product(range(4), repeat=2):
        found = Counter(generate(guess, uniforms) for uniforms in itertools.product(values, repeat=3))
        assert found == expected


def test_the_engine_draws_from_the_models_distribution_whatever_is_guessed(qwen: MemoryCheckpoint) -> None:
    """Two tokens of five possible ones, a thousand answers: their counts against the naive model's probabilities."""
    size, count, prompt = 5, 1000, random_ids(5, 8)

    def chances(token_ids: list[int]) -> Tensor:
        return (naive_logits(qwen.values, qwen.config, token_ids)[-1][:size] / 0.7).softmax(-1)

    first = chances(prompt)
    joint = torch.stack([first[a] * chances([*prompt, a]) for a in range(size)])  # (first, second)
    engine = engine_of(qwen, speculator=Bold({0: [int(first.argmax())], 1: [2]}), slots=8)
    sampling = Sampling(temperature=0.7)
    asked = [request(f"r{i}", prompt, 2, sampling, num_tokens=size) for i in range(count)]
    answers = run(engine, *asked)
    found = torch.zeros(size, size)
    for answer in answers.values():
        found[answer.token_ids[0], answer.token_ids[1]] += 1
    chi2 = float(((found - count * joint) ** 2 / (count * joint)).sum())
    assert chi2 < 60.0, "of 24 degrees of freedom: exceeded once in 20,000 times"


def test_greedy_is_what_it_was(qwen: MemoryCheckpoint) -> None:
    """The engine's own speculator, on a text that repeats itself, with what it measures of this machine."""
    prompt = random_ids(VOCAB, 6) * 6
    assert (
        run(engine_of(qwen, speculator=Speculator()), request("a", prompt, 60, GREEDY))["a"].token_ids
        == run(engine_of(qwen), request("a", prompt, 60, GREEDY))["a"].token_ids
    )
