"""The engine's own check of a request. The server has checked it too; this is what a mistake there runs into."""

from __future__ import annotations

import math
from pathlib import Path

from qlocal.engine import reference_rows
from qlocal.protocol import MAX_GRAMMAR_CHARS, Sampling, Submit


def refusal(request: Submit, max_context: int, vocab_size: int) -> str | None:
    """Return in one sentence why `request` cannot be run, or None when it can."""
    length = len(request.input_ids)
    if not length:
        return "the prompt is empty"
    if request.max_tokens < 0 or (request.max_tokens == 0 and request.scored_from is None):
        return f"max_tokens is {request.max_tokens}, expected at least 1"
    if length + request.max_tokens > max_context:
        return (
            f"the prompt of {length} tokens and {request.max_tokens} more for the answer exceed the context "
            f"of {max_context} tokens"
        )
    if not 0 < request.num_tokens <= vocab_size:
        return f"num_tokens is {request.num_tokens}, expected 1 to {vocab_size}"
    if request.scored_from is not None and not 1 <= request.scored_from <= length:
        return f"scored_from is {request.scored_from}, expected 1 to {length}"
    if (message := _rows_refusal(request)) is not None:
        return message
    if request.grammar is not None and len(request.grammar) > MAX_GRAMMAR_CHARS:
        return f"the grammar has {len(request.grammar)} characters, the limit is {MAX_GRAMMAR_CHARS}"
    if not 0 <= request.num_begun < length:
        return f"num_begun is {request.num_begun}, expected 0 to {length - 1}"
    outside = next((i for i in request.input_ids if not 0 <= i < vocab_size), None)
    if outside is not None:
        return f"token id {outside} is outside the vocabulary of {vocab_size}"
    return _sampling_refusal(request.sampling, vocab_size)


def _rows_refusal(request: Submit) -> str | None:
    """Check the files of distributions, and make the one that is to be written."""
    if request.scored_from is None:
        return None if request.keep_rows is None and request.against_rows is None else "nothing is scored"
    try:
        if request.against_rows is not None:
            held, wanted = (
                reference_rows.num_rows(Path(request.against_rows)),
                len(request.input_ids) - request.scored_from,
            )
            if held != wanted:
                return f"the reference has distributions of {held} tokens, expected {wanted}"
        if request.keep_rows is not None:
            reference_rows.begin(Path(request.keep_rows), request.num_tokens)
    except (OSError, ValueError) as error:
        return f"the reference distributions cannot be used: {error}"
    return None


def _sampling_refusal(sampling: Sampling, vocab_size: int) -> str | None:
    ranges = {
        "temperature": (0.0, 100.0),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (0.01, 100.0),
        "presence_penalty": (-100.0, 100.0),
        "frequency_penalty": (-100.0, 100.0),
    }
    for name, (low, high) in ranges.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # false for NaN
            return f"{name} is {value}, expected {low:g} to {high:g}"
    for name, low in (("top_k", 1), ("top_logprobs", 0)):
        value = getattr(sampling, name)
        if value is not None and value < low:
            return f"{name} is {value}, expected at least {low}"
    for token_id, bias in sampling.logit_bias.items():
        if not 0 <= token_id < vocab_size or not math.isfinite(bias):
            return f"logit_bias for token {token_id} is {bias}, expected a number for an id below {vocab_size}"
    return None
