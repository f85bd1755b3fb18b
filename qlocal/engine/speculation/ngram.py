"""What followed the last time that the context read as it does now: an index of pairs of tokens that grows with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_MATCH = 32
"""Tokens of agreement that are told apart; more makes no guess better."""
MAX_PLACES = 16
"""Earlier places of a pair that are looked at, the latest first: in repetitive text there are thousands."""


@dataclass(frozen=True)
class Match:
    """An earlier place that ends as the context does. length: of the agreement in tokens, 2 or more."""

    length: int
    guess: list[int]


class NgramIndex:
    """The places of every pair of tokens in one growing context."""

    def __init__(self) -> None:
        self._last_place: dict[tuple[int, int], int] = {}
        self._place_before: list[int] = []  # by the place of a pair's second token; -1 where there was none

    def lookup(self, token_ids: Sequence[int], count: int) -> Match | None:
        """Return what followed the longest, then latest, earlier agreement with the end of `token_ids`.

        token_ids: those of the last call and new ones behind. A text that repeats itself is taken to go on so.
        """
        self._extend(token_ids)
        best_length, best_place, end = 1, -1, len(token_ids) - 1
        place = self._place_before[end] if token_ids else -1
        for _ in range(MAX_PLACES):
            if place < 0 or best_length == MAX_MATCH:
                break
            length = _agreement(token_ids, place, end)
            if length > best_length:
                best_length, best_place = length, place
            place = self._place_before[place]
        return None if best_place < 0 else Match(best_length, _following(token_ids, best_place, count))

    def _extend(self, token_ids: Sequence[int]) -> None:
        for place in range(len(self._place_before), len(token_ids)):
            if place == 0:
                self._place_before.append(-1)
                continue
            pair = (token_ids[place - 1], token_ids[place])
            self._place_before.append(self._last_place.get(pair, -1))
            self._last_place[pair] = place


def _agreement(token_ids: Sequence[int], first: int, second: int) -> int:
    """Return how many tokens up to place `first` are those up to place `second`, at most MAX_MATCH."""
    length = 0
    while length < min(first + 1, MAX_MATCH) and token_ids[first - length] == token_ids[second - length]:
        length += 1
    return length


def _following(token_ids: Sequence[int], place: int, count: int) -> list[int]:
    period = len(token_ids) - 1 - place
    return [token_ids[place + 1 + index % period] for index in range(count)]
