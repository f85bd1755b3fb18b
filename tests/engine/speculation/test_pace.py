"""How long a guess pays."""

from __future__ import annotations

import pytest

from qlocal.engine.speculation.pace import Acceptance, StepTimes, best_length


def measured(seconds: dict[int, float]) -> StepTimes:
    times = StepTimes()
    for _ in range(40):
        for num_tokens, taken in seconds.items():
            times.note(num_tokens, taken, is_plain=num_tokens == 1)
    return times


def test_nothing_is_guessed_before_a_plain_step_was_measured() -> None:
    times = StepTimes()
    assert best_length(0.9, times, 1, 7) == (0, 1.0)
    times.note(5, 0.1, is_plain=False)
    assert best_length(0.9, times, 1, 7) == (0, 1.0)


def test_the_better_guesses_are_the_longer_they_get() -> None:
    times = measured({1: 0.1, 4: 0.12, 8: 0.14})
    lengths = [best_length(rate, times, 1, 7)[0] for rate in (0.05, 0.4, 0.7, 0.97)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0 and lengths[-1] == 7


def test_steps_that_take_their_tokens_times_as_long_end_guessing() -> None:
    times = measured({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6, 7: 0.7, 8: 0.8})
    assert best_length(0.95, times, 1, 7) == (0, 1.0)


def test_a_dear_draft_gets_shorter_guesses_and_none_at_last() -> None:
    times = measured({1: 0.1, 8: 0.12})
    lengths = [best_length(0.8, times, 1, 7, guess_s)[0] for guess_s in (0.0, 0.01, 0.03, 0.09)]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


def test_one_slow_step_changes_little() -> None:
    times = measured({1: 0.1})
    times.note(1, 30.0, is_plain=True)
    assert times.seconds(1) == pytest.approx(0.15)


def test_a_longer_context_makes_all_sizes_slower() -> None:
    times = measured({1: 0.1, 4: 0.12})
    for _ in range(20):
        times.note(1, 0.2, is_plain=True)
    assert times.seconds(4) == pytest.approx(0.24, rel=0.01)


def test_sizes_that_were_not_measured_lie_on_a_line_with_the_nearest() -> None:
    times = measured({1: 0.1, 5: 0.14})
    assert times.seconds(3) == pytest.approx(0.12, rel=0.01)
    assert times.seconds(8) == pytest.approx(0.17, rel=0.01)


def test_acceptance_follows_the_latest_guesses() -> None:
    acceptance = Acceptance(0.5)
    for _ in range(60):
        acceptance.note(3, was_wrong=False)
    assert acceptance.rate > 0.99
    for _ in range(60):
        acceptance.note(0, was_wrong=True)
    assert acceptance.rate < 0.1
