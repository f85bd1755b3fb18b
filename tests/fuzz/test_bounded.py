"""The share of the fuzzing that every run of the tests takes: the same cases each time."""

from __future__ import annotations

from tests.fuzz.run import fuzz

CASES = 200_000


def test_two_hundred_thousand_hostile_inputs_are_read_or_refused_in_one_sentence() -> None:
    tallies = fuzz(CASES, seconds=1e9, seed=0)
    assert sum(tally.cases for tally in tallies) >= CASES
    assert {tally.name: tally.findings for tally in tallies if tally.findings} == {}
    assert all(tally.read and tally.read < tally.cases for tally in tallies), "each target reads some and refuses some"
