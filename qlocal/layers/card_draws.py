"""Drawing tokens on a card, inside of a recorded step: what `engine/sampler.py` does to a row, for all rows at once.

The random numbers are the requests' own and come from the host with the inputs of the step, so a seed gives there what
it gives here. What penalties depend on stays on the card (`TokenTable`): a step brings only the tokens that are new.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qlocal.layers.adjustment import Adjustment
from qlocal.schema import Sampling

NUM_LIKELY = 1024
"""How many of the most likely tokens are sorted; a nucleus is nearly always among them, else the host looks further."""
UNDECIDED = -1
"""In place of a token: more than NUM_LIKELY tokens may pass the filters."""
MAX_NEW = 8
"""Tokens that a step adds to a row of the table, or stand before a row in a guess; beyond, a row is brought anew."""
_TABLE_ROWS = 16
"""As many sequences as a step has rows at most."""
_SETTINGS = 6
_NUMBERS = 5 + 2 * MAX_NEW


@dataclass(frozen=True)
class RowDraw:
    """How the token after one row is drawn. uniform: in [0, 1), None to take the likeliest. guessed: tokens between the
    last known one and this row, that count as if they were known."""

    adjustment: Adjustment
    uniform: float | None
    guessed: Sequence[int] = ()

    @property
    def sampling(self) -> Sampling:
        return self.adjustment.sampling


@dataclass(frozen=True)
class Drawing:
    """What a step is recorded for. adjusts: some row has penalties or a bias; filters: some row is drawn from what
    top-k, top-p and min-p leave; spreads: some row from all tokens."""

    adjusts: bool
    filters: bool
    spreads: bool


@dataclass(frozen=True)
class Draws:
    """How the tokens after the rows of a step are drawn. rows: one a row of the step, None where nothing is drawn.
    num_tokens: ids that stand for a token, the same for all."""

    num_tokens: int
    rows: Sequence[RowDraw | None]

    @property
    def drawing(self) -> Drawing:
        drawn = [row for row in self.rows if row is not None]
        random = [row.sampling for row in drawn if row.uniform is not None]
        adjusts = any(not row.adjustment.is_none for row in drawn)
        return Drawing(adjusts, any(map(_filters, random)), not all(map(_filters, random)))


def _filters(sampling: Sampling) -> bool:
    return sampling.top_k is not None or sampling.top_p < 1.0 or sampling.min_p > 0.0


def draw_sizes(num_rows: int) -> dict[str, tuple[int, int]]:
    """Return the sizes of what a step brings, all in numbers of four bytes; settings are f32, numbers int32."""
    return {"settings": (num_rows, _SETTINGS), "numbers": (num_rows, _NUMBERS)}


@dataclass(frozen=True, eq=False)
class DrawInputs:
    """What a step of T rows brings, on the host or on a card. settings: (T, 6) f32, temperature, top-p, min-p and the
    penalties for repetition, frequency, presence; numbers: (T, 21) int32, the two halves of a float64, whether it is
    used, top-k (0 for none), row of the table, tokens that are new to the table, tokens guessed (-1 for none)."""

    settings: Tensor
    numbers: Tensor

    def write(self, draws: Draws, table: TokenTable) -> None:
        """On the host."""
        settings, numbers = self.settings.numpy(), self.numbers.numpy()
        settings[:] = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0)
        numbers[:] = -1
        numbers[:, :4] = 0
        numbers[:, 4] = _TABLE_ROWS
        for row, draw in enumerate(draws.rows):
            if draw is None:
                continue
            wanted = draw.sampling
            settings[row, 1:] = (
                wanted.top_p,
                wanted.min_p,
                wanted.repetition_penalty,
                wanted.frequency_penalty,
                wanted.presence_penalty,
            )
            if draw.uniform is not None:
                settings[row, 0] = wanted.temperature
                numbers[row, :2] = np.array([draw.uniform]).view(np.int32)
                numbers[row, 2:4] = (1, wanted.top_k or 0)
            if not draw.adjustment.is_none:
                place, new = table.place(draw.adjustment)
                numbers[row, 4] = place
                numbers[row, 5 : 5 + len(new)] = new
                numbers[row, 5 + MAX_NEW : 5 + MAX_NEW + len(draw.guessed)] = draw.guessed


@dataclass
class _Copied:
    """How far a row of the table has come. adjustment: of the request that it belongs to."""

    place: int
    adjustment: Adjustment
    num_noted: int


@dataclass(eq=False)
class TokenTable:
    """Copies of requests' adjustments on a card, a row each and one of zeros: counts and bias (16 + 1, V) f32,
    in_prompt (16 + 1, V) bool. Made when first asked for."""

    num_tokens: int
    device: torch.device
    _copied: OrderedDict[int, _Copied] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        shape = (_TABLE_ROWS + 1, self.num_tokens)
        self.counts = torch.zeros(shape, device=self.device)
        self.bias = torch.zeros(shape, device=self.device)
        self.in_prompt = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def place(self, adjustment: Adjustment) -> tuple[int, list[int]]:
        """Return the row of a request, and which tokens the step is to add to it. What lasts longest unused goes."""
        copied = self._copied.get(id(adjustment))
        if copied is None or len(adjustment.noted) - copied.num_noted > MAX_NEW:
            copied = self._bring(adjustment, None if copied is None else copied.place)
        new = adjustment.noted[copied.num_noted :]
        copied.num_noted += len(new)
        self._copied.move_to_end(id(adjustment))
        return copied.place, new

    def _bring(self, adjustment: Adjustment, place: int | None) -> _Copied:
        if place is None:
            place = len(self._copied)
            if place == _TABLE_ROWS:
                place = self._copied.popitem(last=False)[1].place
        self.counts[place].copy_(adjustment.counts())
        self.bias[place].copy_(adjustment.bias())
        self.in_prompt[place].copy_(adjustment.in_prompt())
        copied = self._copied[id(adjustment)] = _Copied(place, adjustment, len(adjustment.noted))
        return copied


def draw(logits: Tensor, inputs: DrawInputs, drawing: Drawing, table: TokenTable | None) -> Tensor:
    """Draw a token a row from (T, V) f32. Returns (T,) int64, UNDECIDED where the host has to."""
    settings, numbers = inputs.settings, inputs.numbers
    if drawing.adjusts:
        assert table is not None, "whoever adjusts has a table"
        logits = _adjusted(logits, settings, numbers, table)
    tokens = logits.argmax(1)
    if not (drawing.filters or drawing.spreads):
        return tokens
    scaled = logits / settings[:, 0:1]
    probabilities = scaled.softmax(1)
    uniform = numbers[:, 0:2].clone(memory_format=torch.contiguous_format).view(torch.float64)  # (T, 1)
    is_random, top_k = numbers[:, 2] != 0, numbers[:, 3:4]
    drawn = tokens
    if drawing.spreads:
        drawn = _drawn(probabilities, uniform)[:, 0]
    if drawing.filters:
        among_likely = _drawn_of_likely(scaled, probabilities, uniform, settings, top_k)
        has_filter = (top_k[:, 0] > 0) | (settings[:, 1] < 1.0) | (settings[:, 2] > 0.0)
        drawn = torch.where(has_filter, among_likely, drawn)
    return torch.where(is_random, drawn, tokens)


def _adjusted(logits: Tensor, settings: Tensor, numbers: Tensor, table: TokenTable) -> Tensor:
    """Add the new tokens to the table, and apply penalties and bias to (T, V) f32."""
    places = numbers[:, 4].long()
    new, guessed = numbers[:, 5 : 5 + MAX_NEW].long(), numbers[:, 5 + MAX_NEW :].long()
    at = places[:, None] * table.num_tokens + new.clamp(min=0)
    # One that is none adds nothing, to any count. Sums of whole numbers do not depend on their order.
    table.counts.view(-1).scatter_add_(0, at.view(-1), (new >= 0).float().view(-1))
    counts = table.counts[places].scatter_add(1, guessed.clamp(min=0), (guessed >= 0).float())
    repetition, frequency, presence = (settings[:, i : i + 1] for i in (3, 4, 5))
    punished = torch.where(logits > 0, logits / repetition, logits * repetition)
    is_used = counts > 0
    logits = torch.where(table.in_prompt[places] | is_used, punished, logits)
    return logits - frequency * counts - presence * is_used.float() + table.bias[places]


def _drawn_of_likely(scaled: Tensor, probabilities: Tensor, uniform: Tensor, settings: Tensor, top_k: Tensor) -> Tensor:
    """Draw a token a row from what the filters leave of the most likely ones: (T,) int64."""
    width = scaled.shape[1]
    likely, ids = scaled.topk(min(NUM_LIKELY, width), dim=1)  # the greatest first
    places = torch.arange(ids.shape[1], device=ids.device)[None]
    has_top_k = top_k > 0
    among_top_k = likely.masked_fill(places >= top_k.clamp(min=1), float("-inf")).softmax(1)
    likely = torch.where(has_top_k, among_top_k, probabilities.gather(1, ids))
    before = likely.cumsum(1) - likely
    keep = (before < settings[:, 1:2]) & (likely >= settings[:, 2:3] * likely[:, :1])
    keep &= ~has_top_k | (places < top_k)
    num_kept = keep.sum(1, keepdim=True).clamp(min=1)
    index = _drawn(likely.masked_fill(places >= num_kept, 0.0), uniform).minimum(num_kept - 1)
    is_open = ~has_top_k & (num_kept == ids.shape[1]) & (ids.shape[1] < width)
    return torch.where(is_open, UNDECIDED, ids.gather(1, index))[:, 0]


def _drawn(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the place where the cumulative sum of (T, n) passes the share `uniform` (T, 1) of all: (T, 1) int64."""
    cumulative = weights.double().cumsum(1)
    places = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return places.clamp(max=weights.shape[1] - 1)
