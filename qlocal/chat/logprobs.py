"""What a model gave its tokens: of every token of an answer its log probability and the best ones that could have stood
there. Values and their packed form for the store; no network, no screen.
"""

from __future__ import annotations

import codecs
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgpack

from qlocal.errors import HistoryError

TOP = 5
"""So many alternatives are asked for with every answer: 0.2 ms a token of a vocabulary of 151,936 on one core."""
FORMAT = 1


@dataclass(frozen=True)
class Candidate:
    """A token and its natural log probability. token_id: None where the server does not tell it. raw: its bytes, which
    may be a part of a character."""

    token_id: int | None
    raw: bytes
    logprob: float

    def is_same(self, other: Candidate) -> bool:
        """Whether both are one token: by ids where they are known, for two tokens may be spelt alike."""
        if self.token_id is None or other.token_id is None:
            return self.raw == other.raw
        return self.token_id == other.token_id

    @property
    def probability(self) -> float:
        return math.exp(self.logprob)


@dataclass(frozen=True)
class TokenLogprobs:
    """The token that was written and the likeliest ones at its place, the best first."""

    chosen: Candidate
    top: tuple[Candidate, ...] = ()

    @property
    def rest(self) -> float:
        """The probability of all that is not in `top`."""
        return max(0.0, 1.0 - sum(one.probability for one in self.top))

    @property
    def entropy_bits(self) -> float:
        """At least so many bits: all that is not in `top` counts as one token."""
        parts = [*(one.probability for one in self.top), self.rest]
        return sum(-p * math.log2(p) for p in parts if p > 0.0) + 0.0

    @property
    def is_best(self) -> bool:
        """Whether the likeliest token was written."""
        return not self.top or self.top[0].is_same(self.chosen)


@dataclass(frozen=True)
class Scored:
    """An answer as a model read it. reference: the name of its distributions, where they are kept. kl, kl_reverse: of
    every token, in nats from a reference to this model and back, where there is one."""

    tokens: list[TokenLogprobs]
    reference: str | None = None
    kl: list[float] = field(default_factory=list)
    kl_reverse: list[float] = field(default_factory=list)


def text_of(tokens: Sequence[TokenLogprobs]) -> str:
    """Return the text of tokens, without a character that ends in the middle."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(token.chosen.raw for token in tokens))


def token_ids(tokens: Sequence[TokenLogprobs]) -> list[int] | None:
    """Return the ids, or None where one is not known."""
    ids = [token.chosen.token_id for token in tokens]
    known = [token_id for token_id in ids if token_id is not None]
    return known if len(known) == len(ids) else None


def pack(tokens: Sequence[TokenLogprobs]) -> bytes:
    """Return tokens as bytes, about 25 a token with five alternatives: each kind of token is named once, probabilities
    are float32 of a thousandth."""
    kinds: dict[tuple[int | None, bytes], int] = {}
    rows = [[_packed(one, kinds) for one in (token.chosen, *token.top)] for token in tokens]
    return zlib.compress(msgpack.packb([FORMAT, list(kinds), rows]))


def unpack(data: bytes) -> list[TokenLogprobs]:
    """Return what `pack` was given, log probabilities to a thousandth. HistoryError for what it never wrote."""
    try:
        version, kinds, rows = msgpack.unpackb(zlib.decompress(data), use_list=False)
        if version != FORMAT:
            raise HistoryError(f"token probabilities have the format {version}, this qlocal knows {FORMAT}")
        read = [
            [Candidate(kinds[kind][0], kinds[kind][1], -thousandths / 1000) for kind, thousandths in row]
            for row in rows
        ]
        return [TokenLogprobs(chosen, tuple(top)) for chosen, *top in read]
    except (zlib.error, ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise HistoryError(f"stored token probabilities cannot be read: {error!r}") from error


def _packed(one: Candidate, kinds: dict[tuple[int | None, bytes], int]) -> tuple[int, int]:
    kind = kinds.setdefault((one.token_id, one.raw), len(kinds))
    return kind, round(-max(one.logprob, -9999.0) * 1000)
