"""Ending a step half way, whose prompts nobody waits for any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Container

from qlocal.engine.model_runner import Between
from qlocal.engine.scheduler import ScheduledRun

LOOK_S = 0.1
"""How often a step that reads a prompt looks whether anybody still waits for it."""


class InVain(Exception):
    """Nobody waits for what the step reads."""


def between_layers(batch: list[ScheduledRun], given_up: Callable[[], Container[str]] | None) -> Between | None:
    """Return what ends a step that reads for nobody, by InVain, asked between layers; None where a step is short.

    given_up: tells which requests were cancelled meanwhile."""
    readers = [run.sequence.request_id for run in batch if run.num_known > 1]
    if given_up is None or not readers:
        return None
    looked_at = time.perf_counter()

    def look() -> None:
        nonlocal looked_at
        now = time.perf_counter()
        if now - looked_at < LOOK_S:
            return
        looked_at, gone = now, given_up()
        if all(request_id in gone for request_id in readers):
            raise InVain

    return look
