"""Choosing the next token. Each request has its own random numbers, so company in the batch changes nothing.

Order: ids without a token, penalties, bias, grammar, temperature, top-k, top-p, min-p. Log probabilities that are
reported are those of the model, before any of it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from qlocal.engine.constraint import Constraint
from qlocal.layers.adjustment import Adjustment
from qlocal.protocol import Sampling, TokenLogprobs

NUM_LIKELY = 1024
"""How many of the most likely tokens are sorted first; a nucleus is nearly always among them."""
MIN_TEMPERATURE = 1e-4
"""Below it the most likely token is taken: its lead exceeds every other by more than float32 can tell."""


@dataclass(frozen=True)
class Choice:
    """The chosen token; logprobs when the request asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class SamplingState:
    """The settings of one request, its random numbers, and which tokens it has seen."""

    def __init__(
        self, sampling: Sampling, num_tokens: int, prompt_ids: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        """num_tokens: ids that stand for a token; the model may have more rows, which are never chosen.
        constraint: what the answer may say, None for anything."""
        self.sampling = sampling
        self._constraint = constraint
        self.is_stuck = False
        """Whether the constraint allows nothing: matching took more work than it may."""
        self.num_tokens = num_tokens
        self.adjustment = Adjustment(sampling, num_tokens, prompt_ids)
        self._random = random.Random(sampling.seed)
        self._drawn_ahead: deque[float] = deque()

    @property
    def takes_likeliest(self) -> bool:
        """Whether the token with the largest logit is taken as it is, and nothing else is asked of the logits."""
        return self.may_be_drawn_elsewhere and self.adjustment.is_none and self.is_greedy

    @property
    def may_be_drawn_elsewhere(self) -> bool:
        """Whether a device may draw the token: nobody asks for log probabilities, and no grammar for every token."""
        return self._constraint is None and self.sampling.top_logprobs is None

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < MIN_TEMPERATURE

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow what has been generated."""
        return self._constraint is not None and self._constraint.is_complete

    def uniform(self) -> float:
        """Return the request's next random number in [0, 1)."""
        return self._drawn_ahead.popleft() if self._drawn_ahead else self._random.random()

    def next_uniforms(self, count: int) -> list[float]:
        """Return what the next calls of `uniform` will, which stays so."""
        while len(self._drawn_ahead) < count:
            self._drawn_ahead.append(self._random.random())
        return [*islice(self._drawn_ahead, count)]

    def note(self, token_id: int) -> None:
        """Count a generated token."""
        self.adjustment.note(token_id)
        if self._constraint is not None:
            self.is_stuck = not self._constraint.take(token_id)

    def masked(self, logits: Tensor) -> Tensor | None:
        """Take what the constraint forbids out of (num_tokens,) f32, without writing to it; None if nothing is left."""
        if self._constraint is None:
            return logits
        allowed = self._constraint.allowed()
        self.is_stuck = allowed is None
        return None if allowed is None else logits.masked_fill(torch.from_numpy(~allowed), float("-inf"))


def sample_run(logits: Tensor, state: SamplingState, guess: Sequence[int]) -> list[Choice | None]:
    """Choose the next tokens of one sequence: one, and another for as long as what is chosen was guessed.

    logits: (1 + len(guess), V) f32, after the last known token and after every guessed one. Nothing is drawn from rows
    behind a wrong guess, nor behind the end of what a grammar allows. None, at the end, stands for a row that is not
    finite, or of which the grammar leaves nothing.
    """
    return _until_wrong(_choices(logits.cpu(), state), guess)


def _choices(logits: Tensor, state: SamplingState) -> Iterator[Choice | None]:
    for row in logits:
        if state.is_complete:
            return
        yield _choose(row[: state.num_tokens], state)


def likeliest_run(token_ids: Sequence[int | None], guess: Sequence[int]) -> list[Choice | None]:
    """Do what `sample_run` does where the likeliest token after every one of its rows has been found already."""
    return _until_wrong((None if i is None else Choice(i) for i in token_ids), guess)


def drawn_run(token_ids: Sequence[int | None], state: SamplingState, guess: Sequence[int]) -> list[Choice | None]:
    """Do what `sample_run` does where a device has drawn the tokens of all rows, with the request's next numbers."""
    return _until_wrong(_noted(token_ids, state), guess)


def _noted(token_ids: Sequence[int | None], state: SamplingState) -> Iterator[Choice | None]:
    for token_id in token_ids:
        if token_id is None:
            yield None
            return
        if not state.is_greedy:
            state.uniform()
        state.note(token_id)
        yield Choice(token_id)


def _until_wrong(choices: Iterable[Choice | None], guess: Sequence[int]) -> list[Choice | None]:
    """Take choices up to the first that was not guessed, that one included, and ask for no more."""
    taken: list[Choice | None] = []
    for choice, guessed in zip(choices, [*guess, None], strict=False):
        taken.append(choice)
        if choice is None or choice.token_id != guessed:
            break
    return taken


def _choose(logits: Tensor, state: SamplingState) -> Choice | None:
    # NumPy searches a row with vectors and on this thread; torch would wake its own threads, which sleep during a step.
    values = logits.numpy()
    if not (math.isfinite(values.min()) and math.isfinite(values.max())):
        return None
    adjusted = state.masked(state.adjustment.adjusted(logits))
    if adjusted is None:
        return None
    token_id = int(adjusted.numpy().argmax()) if state.is_greedy else _draw(adjusted, state)
    state.note(token_id)
    if state.is_stuck:
        return None
    wanted = state.sampling.top_logprobs
    return Choice(token_id, None if wanted is None else token_logprobs(logits, token_id, wanted))


def token_logprobs(logits: Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Return the log probability of `token_id` and the best `num_top` tokens. logits: (V,) f32."""
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    return TokenLogprobs(token_id, float(logprobs[token_id]), top.indices.tolist(), top.values.tolist())


def prompt_logprobs(logits: Tensor, next_ids: Sequence[int], num_tokens: int, num_top: int) -> list[TokenLogprobs]:
    """Return the log probabilities of the prompt tokens that follow. logits: (t, V) f32; next_ids: t of them."""
    rows = (_without_missing_tokens(row, num_tokens) for row in logits.cpu())
    return [token_logprobs(row, token_id, num_top) for row, token_id in zip(rows, next_ids, strict=True)]


def _without_missing_tokens(logits: Tensor, num_tokens: int) -> Tensor:
    """Give no probability to embedding rows that belong to no token."""
    if num_tokens >= len(logits):
        return logits
    logits = logits.clone()
    logits[num_tokens:] = float("-inf")
    return logits


def _draw(logits: Tensor, state: SamplingState) -> int:
    """Draw from the filtered distribution by its cumulative sum: one random number a token."""
    token_ids, kept = _filtered(logits / state.sampling.temperature, state.sampling)
    cumulative = kept.double().cumsum(0)
    threshold = state.uniform() * float(cumulative[-1])
    index = min(int(torch.searchsorted(cumulative, threshold, right=True)), len(kept) - 1)
    return index if token_ids is None else int(token_ids[index])


def _filtered(logits: Tensor, settings: Sampling) -> tuple[Tensor | None, Tensor]:
    """Return (ids, probabilities) that pass top-k, top-p and min-p, most likely first; ids None means all."""
    if settings.top_k is not None:
        token_ids = _most_likely(logits, settings.top_k)
        probabilities = logits[token_ids].softmax(-1)
        num_kept = _num_kept(probabilities, settings)
        return token_ids[:num_kept], probabilities[:num_kept]
    probabilities = logits.softmax(-1)
    if settings.top_p >= 1.0 and settings.min_p <= 0.0:
        return None, probabilities
    token_ids = _most_likely(probabilities, NUM_LIKELY)
    num_kept = _num_kept(probabilities[token_ids], settings)
    if num_kept == len(token_ids):  # the tail may reach further
        token_ids = probabilities.argsort(descending=True)
        num_kept = _num_kept(probabilities[token_ids], settings)
    return token_ids[:num_kept], probabilities[token_ids[:num_kept]]


def _most_likely(values: Tensor, count: int) -> Tensor:
    """Return the places of the `count` greatest of (V,) f32, the greatest first; all of them where V is less."""
    if count >= len(values):
        return values.argsort(descending=True)
    places = torch.from_numpy(np.argpartition(values.numpy(), len(values) - count)[len(values) - count :])
    return places[values[places].argsort(descending=True)]


def _num_kept(probabilities: Tensor, settings: Sampling) -> int:
    """How many of `probabilities`, most likely first, top-p and min-p keep; never none.

    top-p keeps the fewest whose sum reaches it; min-p those of at least that share of the most likely one,
    measured before top-p.
    """
    before = probabilities.cumsum(0) - probabilities
    keep = (before < settings.top_p) & (probabilities >= settings.min_p * probabilities[0])
    return max(int(keep.sum()), 1)
