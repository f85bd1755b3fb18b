"""A prompt goes through several cards in parts: the numbers are those of the parts one after another, and nothing in
between keeps the host from launching the next part while cards compute. The CPU stands in for the cards."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qlocal.layers.decoder import Decoder
from qlocal.layers.paged_attention import TokenRun, cut_runs
from tests.layers.test_card_decoder import BLOCK, LONG, OTHER, SHORT, card_step, distance, plain_step, storage_of
from tests.layers.test_card_decoder import card as card  # fixtures
from tests.layers.test_card_decoder import interpreted as interpreted
from tests.memory_checkpoint import random_ids

PROMPT = [TokenRun(44, 0, LONG)]
MIXED = [TokenRun(1, 20, SHORT), TokenRun(23, 0, LONG), TokenRun(3, 0, OTHER), TokenRun(17, 6, [9, 10])]


def on_cards(decoder: Decoder, count: int = 2) -> Decoder:
    """Divide the layers over devices that are the CPU under several numbers."""
    for index, layer in enumerate(decoder.layers):
        layer.device = torch.device("cpu", index * count // len(decoder.layers))
    return decoder


def pipelined(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, decoder: Decoder, parts: int) -> Any:
    monkeypatch.setattr(card.decoder, "PART_TOKENS", 1)
    monkeypatch.setattr(card.decoder, "MAX_PARTS", parts)
    return card.decoder.card_decoder(decoder, storage_of(decoder), BLOCK)


@pytest.mark.parametrize("count", range(1, 8))
def test_runs_are_cut_without_losing_a_token(count: int) -> None:
    parts = cut_runs(MIXED, count)
    lengths = [sum(run.length for run in part) for part in parts]
    assert sum(lengths) == 44 and max(lengths) - min(lengths) <= 1
    for run in MIXED:
        pieces = [piece for part in parts for piece in part if piece.blocks is run.blocks]
        assert pieces[0].num_past == run.num_past
        ends = [piece.num_past + piece.length for piece in pieces]
        assert ends[-1] == run.num_past + run.length
        assert [piece.num_past for piece in pieces][1:] == ends[:-1]


def test_fewer_tokens_than_parts_make_as_many_parts_as_tokens() -> None:
    assert [len(part) for part in cut_runs([TokenRun(2, 0, LONG)], 5)] == [1, 1]


CASES = [(MIXED, 2), *(pytest.param(runs, n, marks=pytest.mark.slow) for runs in (PROMPT, MIXED) for n in range(1, 6))]


@pytest.mark.parametrize(("runs", "parts"), CASES)
def test_logits_are_those_of_the_parts_one_after_another(
    card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, runs: list[TokenRun], parts: int
) -> None:
    ids = random_ids(320, 44, seed=parts)
    plain, fast = card.load("llama", "bf16", "reference"), on_cards(card.load("llama", "bf16", "auto"))
    quick = pipelined(card, monkeypatch, fast, parts)
    found = card_step(quick, ids, runs)
    logits = quick.logits([43])
    alone = pipelined(card, monkeypatch, fast, 1)
    one_by_one, row = [], 0
    for part in cut_runs(runs, parts):
        length = sum(run.length for run in part)
        one_by_one.append(card_step(alone, ids[row : row + length], part))
        row += length
    assert torch.equal(found, torch.cat(one_by_one))
    assert torch.equal(logits, alone.logits([length - 1]))
    assert distance(found, plain_step(plain, storage_of(plain), ids, runs)) < 2e-3


def spied(monkeypatch: pytest.MonkeyPatch, tell: Callable[[int, int], None]) -> None:
    """Have spans tell what they are to run, their first layer and how many tokens, in place of running."""
    from qlocal.layers.card_span import CardSpan

    def telling(span: CardSpan, inputs: Any, layout: Any) -> Any:
        tell(span.first, layout.tokens)
        return inputs.hidden_states

    monkeypatch.setattr(CardSpan, "run", telling)


@pytest.mark.parametrize(("parts", "units"), [(1, 2 * 4), (4, 5)])
def test_two_cards_work_at_once(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, parts: int, units: int) -> None:
    """By clocks of pretended cards: each does what it is told in order, beginning when its input is there. A quarter
    of the tokens takes a card one unit of time. Nothing is computed."""
    launched: list[tuple[int, int]] = []
    spied(monkeypatch, lambda first, tokens: launched.append((first, tokens)))
    quick = pipelined(card, monkeypatch, on_cards(card.load("llama", "bf16", "auto")), parts)
    card_step(quick, random_ids(320, 88), [TokenRun(88, 0, LONG)])
    free, there = {0: 0.0, 1: 0.0}, 0.0
    for first, tokens in launched:
        begins = free[0] if first == 0 else max(free[1], there)
        free[first] = there = begins + tokens / 22
    assert len(launched) == 2 * parts and free[1] == units


class NothingAsked(TorchDispatchMode):
    """Lets nothing pass that makes the host wait for a card: numbers read from it, pageable memory sent to it."""

    _WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = [i for i in (args[1] if name == "index" else ()) if i is not None and i.dtype == torch.bool]
        assert not (by_mask or name.startswith(self._WAITING)), f"{name} waits for the card"
        return func(*args, **(kwargs or {}))


def test_attention_of_a_prompt_never_waits_for_a_card(card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlocal.layers import card_attention

    fast = on_cards(card.load("qwen2", "bf16", "auto"))
    quick = card.decoder.card_decoder(fast, storage_of(fast, "q8", "q4"), BLOCK)
    attend_long, asked = card_attention.CardAttention._attend_long, 0

    def watched(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        with NothingAsked():
            return attend_long(*args)

    monkeypatch.setattr(card_attention.CardAttention, "_attend_long", watched)
    card_step(quick, random_ids(320, 17), [TokenRun(17, 37, LONG)])
    assert asked == 2


def test_a_step_that_the_host_has_a_part_in_stays_whole(card: SimpleNamespace) -> None:
    mixture = card.decoder.card_decoder(*_with_storage(on_cards(card.load("mixtral", "bf16", "auto"))), BLOCK)
    dense = card.decoder.card_decoder(*_with_storage(on_cards(card.load("llama", "bf16", "auto"))), BLOCK)
    one_card = card.decoder.card_decoder(*_with_storage(card.load("llama", "bf16", "auto")), BLOCK)
    assert [each._num_parts(2048) for each in (mixture, dense, one_card)] == [1, 8, 1]
    assert [dense._num_parts(tokens) for tokens in (1, 255, 256, 512)] == [1, 1, 2, 4]


def _with_storage(decoder: Decoder) -> tuple[Decoder, Any]:
    return decoder, storage_of(decoder)
