"""How likely the tokens of a prompt are: their log probabilities, and how far another model's distributions are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from qlocal.engine import reference_rows
from qlocal.engine.sampler import prompt_logprobs
from qlocal.engine.scheduler import ScheduledRun

LOGITS_ROWS = 64
"""Prompt rows whose logits are held at once; (64, V) f32 are 39 MB for Qwen."""


class Head(Protocol):
    """What is needed of a model runner."""

    def logits(self, rows: range) -> Tensor: ...


def score_prompt(run: ScheduledRun, head: Head, first_row: int) -> None:
    """Score the tokens that follow those of a run, where its request asks for that. OSError for its files.

    first_row: the row of the step's hidden states where the run begins."""
    request, found = run.sequence.request, run.sequence.prompt_logprobs
    if request.scored_from is None:
        return
    skipped = max(0, request.scored_from - 1 - run.start)
    next_ids = request.input_ids[run.start + skipped + 1 : run.start + run.length + 1]
    top, first = request.sampling.top_logprobs or 0, first_row + skipped
    for at in range(0, len(next_ids), LOGITS_ROWS):
        wanted = next_ids[at : at + LOGITS_ROWS]
        logits = head.logits(range(first + at, first + at + len(wanted)))
        scored = prompt_logprobs(logits, wanted, request.num_tokens, top)
        if request.keep_rows is not None:
            reference_rows.append(Path(request.keep_rows), logits)
        if request.against_rows is not None:
            far = reference_rows.divergences(Path(request.against_rows), len(found), logits, request.num_tokens)
            scored = [replace(t, kl=d.kl, kl_reverse=d.reverse) for t, d in zip(scored, far, strict=True)]
        found += scored
