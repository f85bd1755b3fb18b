"""Sampling: which tokens remain possible, how often each is drawn, what a seed fixes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from qlocal.engine.sampler import NUM_LIKELY, Choice, SamplingState, drawn_run, sample_run
from qlocal.protocol import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0, -3.0])


def state_of(
    sampling: Sampling, prompt: list[int] | None = None, num_tokens: int | None = None, size: int = 6
) -> SamplingState:
    return SamplingState(sampling, num_tokens or size, prompt or [])


def sample(logits: Tensor, states: list[SamplingState]) -> list[Choice | None]:
    """Choose one token for every row."""
    return [sample_run(row[None], state, [])[0] for row, state in zip(logits, states, strict=True)]


def drawn(logits: Tensor, state: SamplingState, count: int = 400) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(count):
        (choice,) = sample(logits[None], [state])
        assert choice is not None
        found[choice.token_id] += 1
    return found


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(top_k=1), {0}),
        (Sampling(top_k=3), {0, 1, 2}),
        (Sampling(top_k=50), {0, 1, 2, 3, 4, 5}),
        (Sampling(top_p=0.6), {0}),
        (Sampling(top_p=0.8), {0, 1}),
        (Sampling(top_p=0.0), {0}),
        (Sampling(min_p=0.3), {0, 1}),
        (Sampling(min_p=1.0), {0}),
        (Sampling(top_k=2, top_p=0.99), {0, 1}),
        (Sampling(logit_bias={0: -100.0, 1: -100.0}, top_k=1), {2}),
        (Sampling(logit_bias={5: 100.0}), {5}),
        (Sampling(temperature=0.01), {0}),
        (Sampling(temperature=1e-320), {0}),
        (Sampling(temperature=0.0, logit_bias={4: 50.0}), {4}),
    ],
)
def test_only_tokens_that_pass_the_filters_are_drawn(sampling: Sampling, possible: set[int]) -> None:
    assert set(drawn(LOGITS, state_of(sampling))) <= possible


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    state = state_of(Sampling(temperature=2.0, seed=0))
    found = drawn(LOGITS, state, 4000)
    expected = (LOGITS / 2.0).softmax(-1)
    for token_id, probability in enumerate(expected.tolist()):
        assert found[token_id] / 4000 == pytest.approx(probability, abs=0.025)


def test_filtered_tokens_keep_their_proportions() -> None:
    found = drawn(LOGITS, state_of(Sampling(top_k=2, seed=0)), 4000)
    assert found[0] / found[1] == pytest.approx(2.718, rel=0.15)


def test_a_nucleus_wider_than_the_first_look_is_found() -> None:
    size = 4 * NUM_LIKELY
    state = state_of(Sampling(top_p=0.75, seed=0), size=size)
    found = drawn(-torch.arange(size) * 1e-6, state, 3000)
    assert NUM_LIKELY < max(found) < 0.76 * size


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    state = state_of(Sampling(temperature=0.0, repetition_penalty=4.0), prompt=[0, 3])
    adjusted = state.adjustment.adjusted(LOGITS)
    assert adjusted.tolist() == [0.5, 1.0, 0.0, -4.0, -2.0, -3.0]
    state.note(1)
    assert state.adjustment.adjusted(LOGITS).tolist() == [0.5, 0.25, 0.0, -4.0, -2.0, -3.0]


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    state = state_of(Sampling(presence_penalty=0.5, frequency_penalty=0.25), prompt=[0, 3])
    assert state.adjustment.adjusted(LOGITS).tolist() == LOGITS.tolist()
    for token_id in (1, 1, 2):
        state.note(token_id)
    assert state.adjustment.adjusted(LOGITS).tolist() == [2.0, 0.0, -0.75, -1.0, -2.0, -3.0]


def test_a_seed_fixes_the_draws_and_its_absence_does_not() -> None:
    flat = torch.zeros(6)

    def draws(seed: int | None, company: int = 0) -> list[int]:
        states = [state_of(Sampling(seed=seed)), *(state_of(Sampling(seed=99)) for _ in range(company))]
        rows = flat.repeat(len(states), 1)
        choices = [sample(rows, states)[0] for _ in range(40)]
        return [choice.token_id for choice in choices if choice is not None]

    assert draws(7) == draws(7) == draws(7, company=3)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


def test_ids_without_a_token_get_no_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 9.0, 9.0])
    state = state_of(Sampling(temperature=1.0, top_logprobs=4), num_tokens=2, size=4)
    (choice,) = sample(logits[None], [state])
    assert choice is not None and choice.logprobs is not None
    assert choice.token_id in (0, 1)
    assert choice.logprobs.top_ids[:2] == [1, 0]
    assert choice.logprobs.top_logprobs[0] == pytest.approx(-0.3133, abs=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_not_sampled(value: float) -> None:
    broken = LOGITS.clone()
    broken[3] = value
    good, bad = sample(torch.stack([LOGITS, broken]), [state_of(Sampling(temperature=0.0)) for _ in range(2)])
    assert good == Choice(0)
    assert bad is None


def test_noise_in_rows_without_a_token_does_not_matter() -> None:
    logits = torch.tensor([0.0, 1.0, float("nan")])
    assert sample(logits[None], [state_of(Sampling(temperature=0.0), num_tokens=2, size=3)]) == [Choice(1)]


def test_rows_behind_a_wrong_guess_are_not_drawn_from() -> None:
    rows = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    greedy = state_of(Sampling(temperature=0.0, frequency_penalty=1.0))
    assert sample_run(rows, greedy, [0, 3]) == [Choice(0), Choice(5)]
    assert greedy.adjustment.adjusted(LOGITS)[[0, 5]].tolist() == [1.0, -4.0]  # the third row has counted nothing


def test_guesses_change_neither_what_a_seed_draws_nor_its_later_draws() -> None:
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))

    def draws(guess: list[int]) -> list[int]:
        """Draw the four rows, guessing what comes as far as a guess is right."""
        state, found = state_of(Sampling(seed=3, presence_penalty=1.0)), list[int]()
        while len(found) < 4:
            at = len(found)
            ahead = guess[at : at + 3 - at]
            found += [c.token_id for c in sample_run(rows[at : at + 1 + len(ahead)], state, ahead) if c is not None]
        return found

    plain = draws([])
    assert draws(plain) == plain
    assert draws([plain[0], (plain[1] + 1) % 6, plain[2]]) == plain


def test_what_a_device_drew_counts_as_far_as_it_was_guessed_right() -> None:
    """Two tokens are taken, so two random numbers are used, and the third row's token is not noted."""
    here, there = (state_of(Sampling(seed=4, presence_penalty=1.0)) for _ in range(2))
    assert drawn_run([2, 5, 1], here, [2, 3]) == [Choice(2), Choice(5)]
    assert here.adjustment.noted == [2, 5]
    assert [there.uniform() for _ in range(3)][2] == here.uniform()
    assert drawn_run([None, 1], here, [2]) == [None]
