"""What a device is told so that it draws the next tokens of a step itself, and what it drew.

A card ends its recorded step with tokens; only these come back. What it cannot do (answers held to a grammar, log
probabilities, more tokens than it sorts) is left to the sampler, by logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from qlocal.engine.sampler import Choice, drawn_run
from qlocal.engine.scheduler import ScheduledRun
from qlocal.layers.card_draws import MAX_NEW, NUM_LIKELY, Draws, RowDraw


def draws_of(batch: Sequence[ScheduledRun]) -> Draws | None:
    """Return how the rows of a batch are drawn; None where the likeliest tokens are asked for, or a device cannot."""
    sampled = [run for run in batch if run.samples]
    states = [run.sequence.sampling for run in sampled]
    num_tokens = {state.num_tokens for state in states}
    if len(num_tokens) != 1 or not all(map(_can_be_drawn, sampled)) or all(s.takes_likeliest for s in states):
        return None
    return Draws(num_tokens.pop(), [row for run in batch for row in _rows(run)])


def _can_be_drawn(run: ScheduledRun) -> bool:
    state, top_k = run.sequence.sampling, run.sequence.sampling.sampling.top_k
    return state.may_be_drawn_elsewhere and (top_k is None or top_k <= NUM_LIKELY) and len(run.guess) <= MAX_NEW


def _rows(run: ScheduledRun) -> list[RowDraw | None]:
    if not run.samples:
        return [None] * run.length
    state, count = run.sequence.sampling, 1 + len(run.guess)
    uniforms = [None] * count if state.is_greedy else state.next_uniforms(count)
    drawn = [RowDraw(state.adjustment, uniform, run.guess[:row]) for row, uniform in enumerate(uniforms)]
    return [*[None] * (run.num_known - 1), *drawn]


def choices_of(sampled: Sequence[ScheduledRun], token_ids: Sequence[int | None]) -> list[list[Choice | None]]:
    """Part what a device drew for all rows of `sampled`, which it draws from, into what every sequence takes of it."""
    left = iter(token_ids)
    counts = [1 + len(run.guess) for run in sampled]
    return [
        drawn_run([*islice(left, n)], run.sequence.sampling, run.guess) for run, n in zip(sampled, counts, strict=True)
    ]
