"""An engine whose layers are on a card, the CPU standing in for it: greedy text of the readable decoder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels import dispatch
from qlocal.protocol import Sampling
from tests.engine.running import VOCAB, engine_of, request, run
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


def test_only_who_wants_more_than_the_likeliest_token_gets_logits(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(MemoryCheckpoint("llama", {"num_hidden_layers": 1}), kv="f16", block_size=32)
    asked: list[list[int]] = []
    logits = engine._runner.logits
    monkeypatch.setattr(engine._runner, "logits", lambda rows: asked.append(list(rows)) or logits(rows))
    run(engine, request("greedy", [1, 2, 3], 4))
    assert asked == []
    run(engine, request("drawn", [4, 5, 6], 2, Sampling(temperature=1.0, seed=1)))
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
