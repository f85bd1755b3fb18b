"""What a card draws, by its torch code on the CPU, is what the sampler draws from the same logits and numbers."""

from __future__ import annotations

import pytest
import torch

from qlocal.engine.sampler import SamplingState, sample_run
from qlocal.layers.card_draws import UNDECIDED, DrawInputs, Draws, RowDraw, TokenTable, draw, draw_sizes
from qlocal.protocol import Sampling

VOCAB = 1500
SETTINGS = {
    "temperature alone": Sampling(temperature=0.8, seed=1),
    "top-k": Sampling(temperature=1.2, top_k=7, seed=2),
    "top-p": Sampling(temperature=0.7, top_p=0.9, seed=3),
    "min-p": Sampling(temperature=1.5, min_p=0.05, seed=4),
    "all filters": Sampling(temperature=1.0, top_k=40, top_p=0.8, min_p=0.02, seed=5),
    "penalties": Sampling(
        temperature=0.9, top_p=0.95, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, seed=6
    ),
    "greedy with penalties": Sampling(temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.5),
    "bias": Sampling(temperature=0.6, top_k=20, logit_bias={3: 5.0, 700: -100.0, 11: 2.5}, seed=7),
    "the most likely": Sampling(temperature=0.0),
}


def drawn(logits: torch.Tensor, draws: Draws, table: TokenTable) -> list[int]:
    """Do a step's drawing: what the host writes, and what the card makes of it."""
    sizes = draw_sizes(len(logits))
    inputs = DrawInputs(torch.empty(sizes["settings"]), torch.empty(sizes["numbers"], dtype=torch.int32))
    inputs.write(draws, table)
    return [int(i) for i in draw(logits, inputs, draws.drawing, table)]


def row_of(state: SamplingState, guessed: tuple[int, ...] = ()) -> RowDraw:
    uniform = None if state.is_greedy else state.next_uniforms(len(guessed) + 1)[-1]
    return RowDraw(state.adjustment, uniform, guessed)


def logits_of(seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("name", SETTINGS)
def test_a_seed_draws_the_same_tokens_on_both(name: str) -> None:
    prompt = [5, 9, 11, 9]
    here, there = (SamplingState(SETTINGS[name], VOCAB, prompt) for _ in range(2))
    table = TokenTable(VOCAB, torch.device("cpu"))
    for step in range(40):
        logits = logits_of(step)
        (expected,) = sample_run(logits[None], here, [])
        (token,) = drawn(logits[None], Draws(VOCAB, [row_of(there)]), table)
        assert expected is not None and token == expected.token_id, f"step {step}"
        if not there.is_greedy:
            there.uniform()
        there.note(token)


def test_rows_of_a_batch_do_not_disturb_each_other() -> None:
    """Every kind in one step, in an order that changes, with rows between them that nothing is drawn from."""
    here = [SamplingState(wanted, VOCAB, [i]) for i, wanted in enumerate(SETTINGS.values())]
    there = [SamplingState(wanted, VOCAB, [i]) for i, wanted in enumerate(SETTINGS.values())]
    table = TokenTable(VOCAB, torch.device("cpu"))
    for step in range(12):
        order = torch.randperm(len(here), generator=torch.Generator().manual_seed(step)).tolist()
        logits = torch.stack([logits_of(100 * step + i) for i in range(len(here) + 1)])
        rows = [None, *(row_of(there[i]) for i in order)]
        tokens = drawn(logits, Draws(VOCAB, rows), table)[1:]
        for index, row, token in zip(order, logits[1:], tokens, strict=True):
            (expected,) = sample_run(row[None], here[index], [])
            assert expected is not None and token == expected.token_id, f"step {step}, request {index}"
            if not there[index].is_greedy:
                there[index].uniform()
            there[index].note(token)


def test_guessed_tokens_count_for_the_rows_behind_them_alone() -> None:
    wanted = SETTINGS["penalties"]
    guess = [4, 4, 8]
    logits = torch.stack([logits_of(i) for i in range(4)])
    for row, right in enumerate(guess):
        logits[row, right] = 60.0  # so that the guess is right
    here, there = (SamplingState(wanted, VOCAB, [1]) for _ in range(2))
    expected = sample_run(logits, here, guess)
    assert len(expected) == 4
    table = TokenTable(VOCAB, torch.device("cpu"))
    rows = [row_of(there, tuple(guess[:i])) for i in range(4)]
    tokens = drawn(logits, Draws(VOCAB, rows), table)
    assert tokens == [choice.token_id for choice in expected if choice is not None]
    assert not table.counts.any(), "what is guessed is not known yet"


def test_a_request_that_others_have_pushed_out_comes_back_whole() -> None:
    wanted = Sampling(temperature=0.0, frequency_penalty=1.0)
    table = TokenTable(VOCAB, torch.device("cpu"))
    first = SamplingState(wanted, VOCAB, [])
    logits = logits_of(0)[None]
    for token in (7, 7, 9):
        drawn(logits, Draws(VOCAB, [row_of(first)]), table)
        first.note(token)
    others = [SamplingState(wanted, VOCAB, []) for _ in range(16)]
    drawn(logits.expand(16, -1), Draws(VOCAB, [row_of(other) for other in others]), table)
    for token in range(12):  # more than a step brings
        first.note(token)
    place, new = table.place(first.adjustment)
    assert new == [] and torch.equal(table.counts[place], first.adjustment.counts())
    assert first.adjustment.counts()[7] == 3


def test_a_nucleus_wider_than_what_is_sorted_is_left_to_the_host() -> None:
    flat, steep = torch.zeros(VOCAB), logits_of(1)
    states = [SamplingState(Sampling(temperature=1.0, top_p=0.99, seed=i), VOCAB, []) for i in range(2)]
    tokens = drawn(torch.stack([flat, steep]), Draws(VOCAB, [row_of(s) for s in states]), TokenTable(VOCAB, "cpu"))
    assert tokens[0] == UNDECIDED and tokens[1] != UNDECIDED


def test_numbers_looked_at_ahead_are_those_that_come() -> None:
    looked, plain = (SamplingState(Sampling(seed=3), VOCAB, []) for _ in range(2))
    assert looked.next_uniforms(3) == looked.next_uniforms(3)
    assert [looked.uniform() for _ in range(5)] == [plain.uniform() for _ in range(5)]
