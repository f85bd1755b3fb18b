"""What the context suggests to come next."""

from __future__ import annotations

import random

from qlocal.engine.speculation.ngram import MAX_MATCH, NgramIndex


def test_the_longest_agreement_wins_over_a_later_one() -> None:
    match = NgramIndex().lookup([1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3], 2)
    assert match is not None
    assert (match.length, match.guess) == (3, [4, 9])


def test_of_equal_agreements_the_latest_wins() -> None:
    match = NgramIndex().lookup([1, 2, 7, 1, 2, 8, 1, 2], 1)
    assert match is not None and match.guess == [8]


def test_a_single_token_suggests_nothing() -> None:
    assert NgramIndex().lookup([1, 2, 3, 1], 4) is None
    assert NgramIndex().lookup([1], 4) is None
    assert NgramIndex().lookup([], 4) is None


def test_a_repetition_is_taken_to_go_on() -> None:
    match = NgramIndex().lookup([5, 6, 7, 5, 6, 7, 5, 6], 7)
    assert match is not None and match.guess == [7, 5, 6, 7, 5, 6, 7]


def test_a_growing_context_is_indexed_once_and_as_a_whole_one() -> None:
    chosen = random.Random(0)
    token_ids = [chosen.randrange(4) for _ in range(400)]
    growing = NgramIndex()
    for end in range(1, len(token_ids)):
        assert growing.lookup(token_ids[:end], 3) == NgramIndex().lookup(token_ids[:end], 3)


def test_agreements_are_as_long_as_they_say() -> None:
    token_ids = [7] * 500
    match = NgramIndex().lookup(token_ids, 2)
    assert match is not None and match.length == MAX_MATCH
