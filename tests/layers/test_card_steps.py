"""Recorded steps: a replay computes the next step from the memory that stays. What records here only remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlocal.layers.paged_attention import TokenRun
from qlocal.layers.recording import Recorded
from tests.layers.test_card_decoder import BLOCK, LONG, SHORT, card_step, distance, plain_step, storage_of
from tests.layers.test_card_decoder import card as card  # fixtures
from tests.layers.test_card_decoder import interpreted as interpreted
from tests.memory_checkpoint import random_ids


@dataclass
class Remembering:
    """Records as a card does: nothing is computed but by a replay, and always into the same tensors."""

    recorded: int = 0
    replayed: int = 0

    def record(self, work: Callable[[], Any]) -> Recorded[Any]:
        self.recorded += 1
        result = SimpleNamespace()

        def replay() -> None:
            self.replayed += 1
            for name, value in vars(work()).items():
                if hasattr(result, name) and value is not None:
                    getattr(result, name).copy_(value)
                else:
                    setattr(result, name, value)

        return Recorded(replay, result)


def test_the_third_step_of_a_shape_is_a_replay_and_right(card: SimpleNamespace) -> None:
    plain, fast = card.load("qwen2", "bf16", "reference"), card.load("qwen2", "bf16", "auto")
    plain_cache, fast_cache = storage_of(plain), storage_of(fast)
    recorder = Remembering()
    quick = card.decoder.card_decoder(fast, fast_cache, BLOCK, make_recorder=lambda device: recorder)
    steps = [[TokenRun(1, position, LONG)] for position in range(4)]
    steps.insert(2, [TokenRun(1, 0, SHORT), TokenRun(1, 2, LONG)])
    steps[3] = [TokenRun(1, 3, LONG)]
    for number, runs in enumerate(steps):
        ids = random_ids(320, len(runs), seed=number)
        expected = plain_step(plain, plain_cache, ids, runs)
        assert distance(card_step(quick, ids, runs), expected) < 2e-3, f"step {number}"
        logits = plain.logits(expected)
        assert distance(quick.logits(range(len(runs))), logits) < 2e-3
        report = quick.report()
        assert report is not None and report.best == logits.argmax(1).tolist()
        torch.testing.assert_close(torch.tensor(report.sums), expected.sum(1), rtol=1e-2, atol=0.1)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_tokens_that_stand_for_nothing_are_not_chosen(card: SimpleNamespace) -> None:
    fast = card.load("llama", "bf16", "auto")
    recorder = Remembering()
    quick = card.decoder.card_decoder(fast, storage_of(fast), BLOCK, make_recorder=lambda device: recorder)
    quick.choose_among(7)
    for position in range(3):
        card_step(quick, [5], [TokenRun(1, position, LONG)])
        assert quick.report().best == [int(quick.logits([0])[0, :7].argmax())]
    assert recorder.recorded == 1


def test_what_is_no_number_is_not_chosen(card: SimpleNamespace) -> None:
    fast = card.load("llama", "bf16", "auto")
    quick = card.decoder.card_decoder(fast, storage_of(fast), BLOCK)
    fast.final_norm[3] = float("nan")
    card_step(quick, [5], [TokenRun(1, 0, LONG)])
    assert quick.report().best == [None]


def test_a_mixture_is_never_recorded(card: SimpleNamespace) -> None:
    fast = card.load("mixtral", "bf16", "auto")
    recorder = Remembering()
    quick = card.decoder.card_decoder(fast, storage_of(fast), BLOCK, make_recorder=lambda device: recorder)
    for position in range(3):
        card_step(quick, [5], [TokenRun(1, position, LONG)])
    assert recorder.recorded == 0


@pytest.mark.parametrize("longest", [1, 4, 8])
def test_runs_are_cut_into_pieces(card: SimpleNamespace, longest: int) -> None:
    from qlocal.layers.card_inputs import lay_out

    runs = [TokenRun(9, 5, LONG), TokenRun(20, 0, SHORT), TokenRun(1, 3, SHORT)]
    layout = lay_out(runs, longest, 16)
    assert layout.short_rows == [(0, 9), (29, 30)] and [x.first_row for x in layout.long_runs] == [9]
    assert sum(length for _, length, _, _ in layout.pieces) == 10 == len(layout.piece_of_row)
    ends = [past + length for _, length, past, blocks in layout.pieces if blocks is LONG]
    assert ends[-1] == 14 and all(length <= longest for _, length, _, _ in layout.pieces)
