"""An engine whose layers are on a card, the CPU standing in for it: greedy text of the readable decoder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels import dispatch
from qlocal.protocol import Sampling
from tests.engine.card_ranks import Remembering
from tests.engine.running import VOCAB, engine_of, request, run
from tests.engine.speculation.test_exactness import Bold
from tests.kernels.triton.conftest import interpreted as interpreted  # a fixture
from tests.memory_checkpoint import MemoryCheckpoint, random_ids


@pytest.fixture
def card(interpreted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_is_card", lambda device: True)
    monkeypatch.setattr(dispatch, "_missing_for_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))


def test_text_is_that_of_the_readable_decoder(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = MemoryCheckpoint("qwen2", {"num_hidden_layers": 1})
    asked = [request("a", random_ids(VOCAB, 19), 3), request("b", random_ids(VOCAB, 4, seed=1), 4)]
    by_card = run(engine_of(checkpoint, kv="f16", block_size=32), *asked)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_is_card", lambda device: False)
        readable = run(engine_of(checkpoint, kv="f16", block_size=32), *asked)
    assert {n: answer.token_ids for n, answer in by_card.items()} == {n: a.token_ids for n, a in readable.items()}


def test_only_who_wants_more_than_a_token_gets_logits(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(MemoryCheckpoint("llama", {"num_hidden_layers": 1}), kv="f16", block_size=32)
    asked: list[list[int]] = []
    logits = engine._runner.logits
    monkeypatch.setattr(engine._runner, "logits", lambda rows: asked.append(list(rows)) or logits(rows))
    run(engine, request("greedy", [1, 2, 3], 4))
    assert asked == []
    run(engine, request("scored", [4, 5, 6], 2, Sampling(temperature=0.0, top_logprobs=1)))
    assert asked == [[2], [0]]


def test_other_ids_are_chosen_among_from_the_next_step_on(card: None) -> None:
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 1})
    few = request("few", random_ids(7, 3), 4, num_tokens=7)
    answer = run(engine_of(checkpoint, kv="f16", block_size=32), few)["few"]
    assert len(answer.token_ids) == 4 and max(answer.token_ids) < 7


def test_broken_numbers_end_a_request(card: None) -> None:
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 1})
    checkpoint.values["model.norm.weight"][5] = float("nan")
    answer = run(engine_of(checkpoint, kv="f16", block_size=32), request("a", [1, 2], 4))["a"]
    assert answer.reason == "error"


DRAWN = {
    "plain": Sampling(temperature=0.9, seed=11),
    "nucleus": Sampling(temperature=0.8, top_p=0.9, seed=12),
    "top-k and penalties": Sampling(temperature=1.1, top_k=20, repetition_penalty=1.2, presence_penalty=0.5, seed=13),
    "greedy with a bias": Sampling(temperature=0.0, frequency_penalty=0.7, logit_bias={5: 1.5, 9: -3.0}),
}


def test_a_card_draws_what_the_processor_draws(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request after another, then all at once beside one that takes the likeliest; no logits leave the card."""
    checkpoint = MemoryCheckpoint("qwen2", {"num_hidden_layers": 1})
    asked = [request(name, random_ids(VOCAB, 6, seed=i), 5, wanted) for i, (name, wanted) in enumerate(DRAWN.items())]
    asked.append(request("greedy", random_ids(VOCAB, 5, seed=9), 5))
    before = Remembering.replayed
    monkeypatch.setattr("qlocal.layers.card_decoder._cuda_recorder", lambda device: Remembering())
    engine = engine_of(checkpoint, kv="f16", block_size=32)
    monkeypatch.setattr(engine._runner, "logits", lambda rows: pytest.fail("logits were asked for"))
    one_by_one = {name: answer for submit in asked[:3] for name, answer in run(engine, submit).items()}
    together = run(engine, *asked)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_is_card", lambda device: False)
        readable = run(engine_of(checkpoint, kv="f16", block_size=32), *asked)
    assert {n: a.token_ids for n, a in together.items()} == {n: a.token_ids for n, a in readable.items()}
    for name, answer in one_by_one.items():
        assert answer.token_ids == readable[name].token_ids
    assert Remembering.replayed - before >= 9, "the third step of a shape is a replay"


def test_log_probabilities_take_the_logits_of_the_whole_step(card: None) -> None:
    engine = engine_of(MemoryCheckpoint("llama", {"num_hidden_layers": 1}), kv="f16", block_size=32)
    wanted = Sampling(temperature=0.0, top_logprobs=2)
    answers = run(engine, request("a", [1, 2], 3, wanted), request("b", [3, 4], 3, DRAWN["nucleus"]))
    assert [len(answer.token_ids) for answer in answers.values()] == [3, 3] and len(answers["a"].logprobs) == 3


def test_what_a_card_leaves_open_the_processor_draws(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two tokens sorted at most, nearly every nucleus is wider; the numbers drawn stay the request's own."""
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 1})
    asked = request("a", [4, 5, 6], 6, Sampling(temperature=1.5, top_p=0.6, seed=2))
    with monkeypatch.context() as patch:
        patch.setattr("qlocal.layers.card_draws.NUM_LIKELY", 2)
        by_card = run(engine_of(checkpoint, kv="f16", block_size=32), asked)["a"]
        patch.setattr(dispatch, "_is_card", lambda device: False)
        readable = run(engine_of(checkpoint, kv="f16", block_size=32), asked)["a"]
    assert by_card.token_ids == readable.token_ids


def test_guesses_change_nothing_of_what_a_card_draws(card: None) -> None:
    checkpoint = MemoryCheckpoint("llama", {"num_hidden_layers": 1})
    wanted = Sampling(temperature=0.3, top_p=0.95, repetition_penalty=0.7, frequency_penalty=0.2, seed=5)
    asked = request("a", random_ids(VOCAB, 4) * 3, 12, wanted)
    plain = run(engine_of(checkpoint, kv="f16", block_size=32), asked)["a"]
    guesses = {n: [*plain.token_ids[n : n + 3], 1] for n in range(0, 12, 2)}
    guessed = run(engine_of(checkpoint, kv="f16", block_size=32, speculator=Bold(guesses)), asked)["a"]
    assert guessed.token_ids == plain.token_ids
    assert guessed.finished is not None and guessed.finished.accepted_tokens > 3
