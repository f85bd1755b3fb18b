"""What follows the last layer on a card: final norm, head, the next token, and one small report to the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.kernels.triton.add_norm import add_norm
from qlocal.kernels.triton.products import products
from qlocal.layers.card_draws import UNDECIDED, Drawing, DrawInputs, TokenTable, draw
from qlocal.layers.decoder import Decoder
from qlocal.layers.linear import QuantLinear

_COLUMNS = 3


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step leaves on the card, until the next one. hidden_states: (T, D) f32. logits: (T, rows of the head) f32
    and report (T, 3) int32, of the last layers alone: the bits of the sum of a row's hidden states and of the largest
    logit, both f32, and that logit's token, or the one that was drawn."""

    hidden_states: Tensor
    logits: Tensor | None = None
    report: Tensor | None = None


@dataclass(frozen=True)
class Reported:
    """A report on the host. sums: of the hidden states, by row; best: the most likely tokens, or those that were drawn,
    None where a logit is no finite number. undecided: rows whose token the host has to draw."""

    sums: list[float]
    best: list[int | None]
    undecided: frozenset[int] = frozenset()


class CardTail:
    """The norm and the head of a decoder, on one card. num_tokens: ids that stand for a token, which may be chosen."""

    def __init__(self, decoder: Decoder, num_tokens: int) -> None:
        self._norm, self._head = decoder.final_norm, decoder.head
        self._eps = decoder.config.rms_norm_eps
        self._num_tokens = num_tokens
        self._table: TokenTable | None = None

    def table(self) -> TokenTable:
        """Return what is kept of requests on the card."""
        if self._table is None:
            self._table = TokenTable(self._num_tokens, self._norm.device)
        return self._table

    def run(self, stream: Tensor, draws: DrawInputs | None = None, drawing: Drawing | None = None) -> StepResult:
        """stream: (T, D) f32 after the last layer. draws, drawing: given where tokens are drawn."""
        dtype = self._head.parts()[0].weight.dtype
        normed = add_norm(stream, None, self._norm, self._eps, dtype)
        assert normed is not None, "a norm was given"
        sums = products(self._head.gathered(normed), [part.weight for part in self._head.parts()])
        logits = sums[0] if len(sums) == 1 else sums.sum(0)
        choosable = logits[:, : self._num_tokens]
        largest, tokens = choosable.max(dim=1)
        if draws is not None and drawing is not None:
            tokens = draw(choosable, draws, drawing, self._table)
        report = torch.empty((len(stream), _COLUMNS), dtype=torch.int32, device=stream.device)
        report[:, 0] = stream.sum(1).view(torch.int32)
        report[:, 1] = largest.view(torch.int32)
        report[:, 2] = tokens.to(torch.int32)
        return StepResult(stream, logits, report)


def read_report(report: Tensor) -> Reported:
    """Bring a report to the host: the one copy of a step, which waits until it is done."""
    rows = report.cpu()
    sums, largest = (rows[:, column].contiguous().view(torch.float32).tolist() for column in (0, 1))
    tokens = rows[:, 2].tolist()
    best = [token if math.isfinite(most) else None for token, most in zip(tokens, largest, strict=True)]
    return Reported(sums, best, frozenset(row for row, token in enumerate(best) if token == UNDECIDED))


def can_choose(head: QuantLinear, norm: Tensor, device: torch.device) -> bool:
    """Say whether the head computes on the card of the last layer, so that its step may end with a token."""
    parts = head.parts()
    return norm.device == device and all(part.weight.matrix is None and part.bias is None for part in parts)


def rows_of(result: StepResult, rows: Sequence[int]) -> Tensor | None:
    """Return the logits (t, V) f32 of some rows, where the step has made them."""
    if result.logits is None:
        return None
    is_all = list(rows) == [*range(len(result.logits))]
    return result.logits if is_all else result.logits[list(rows)]
