"""An answer read by two variants of a model: how far their distributions are, token by token. Numbers only.

Names are those of llama.cpp's `--kl-divergence`, so that figures compare: mean KLD in nats, same top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlocal.chat.logprobs import TokenLogprobs

MARKED_KL = 0.1
"""Nats from which on a token is marked, its likeliest one being the same."""


@dataclass(frozen=True)
class ReplayedToken:
    """One token of the answer as both variants see it. kl: KL(reference || candidate) over the whole vocabulary."""

    reference: TokenLogprobs
    candidate: TokenLogprobs
    kl: float

    @property
    def is_same_top(self) -> bool:
        """Whether both find the same token the likeliest."""
        if not self.reference.top or not self.candidate.top:
            return True
        return self.reference.top[0].is_same(self.candidate.top[0])

    def is_marked(self, threshold: float) -> bool:
        return not self.is_same_top or self.kl >= threshold


@dataclass(frozen=True)
class Replay:
    """A whole answer. `reference` and `candidate` name the two variants, the larger one first."""

    reference: str
    candidate: str
    tokens: Sequence[ReplayedToken]

    @property
    def mean_kl(self) -> float:
        return sum(token.kl for token in self.tokens) / max(1, len(self.tokens))

    @property
    def max_kl(self) -> float:
        return max((token.kl for token in self.tokens), default=0.0)

    @property
    def median_kl(self) -> float:
        ordered = sorted(token.kl for token in self.tokens)
        middle = len(ordered) // 2
        if not ordered:
            return 0.0
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

    @property
    def same_top(self) -> float:
        """The share of tokens at which both find the same one the likeliest."""
        return sum(token.is_same_top for token in self.tokens) / max(1, len(self.tokens))

    @property
    def first_divergence(self) -> int | None:
        """The first token at which they would have gone different ways, both greedy; None if there is none."""
        return next((idx for idx, token in enumerate(self.tokens) if not token.is_same_top), None)
