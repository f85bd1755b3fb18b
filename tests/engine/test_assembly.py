"""Waiting for other ranks ends when one of them does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qlocal.engine import assembly
from qlocal.engine.team import Team
from qlocal.errors import EngineError


class LosingTeam(Team):
    """A team whose rank ends at once."""

    def check(self) -> None:
        raise EngineError("rank 1 (cpu) ended with exit code 3")


@pytest.fixture
def for_ever() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_what_is_waited_for_is_returned_and_its_errors_are_raised() -> None:
    assert assembly.watched(lambda: 7, None) == 7
    with pytest.raises(ZeroDivisionError):
        assembly.watched(lambda: 1 // 0, LosingTeam([]))


def test_a_rank_that_ends_ends_the_waiting_for_it(for_ever: threading.Event) -> None:
    with pytest.raises(EngineError, match="rank 1"):
        assembly.watched(for_ever.wait, LosingTeam([]))


def test_nobody_is_waited_for_without_end(for_ever: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "WAIT_S", 0.1)
    with pytest.raises(EngineError, match=r"not connected within 0\.1 s"):
        assembly.watched(for_ever.wait, None)
