"""An engine whose layers are on a card, the CPU standing in for it: greedy text of the readable decoder."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qlocal.kernels import dispatch
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
