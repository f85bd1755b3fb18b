"""Waiting for the server to load a model, with a line of progress where somebody looks."""

from __future__ import annotations

import sys

from qlocal import launch
from qlocal.clean import clean_line
from qlocal.errors import EngineError
from qlocal.schema import EngineState, Status

CLEAR_LINE = "\r\x1b[K"


def wait_until_ready(address: launch.Address) -> Status:
    """Return once the model is loaded; EngineError with the reason when it cannot be."""
    shows = sys.stderr.isatty()
    try:
        return _ready_status(address, shows)
    finally:
        if shows:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)


def _ready_status(address: launch.Address, shows: bool) -> Status:
    with launch.connect(address) as client, client.stream("GET", "/qlocal/events") as response:
        for event in launch.events_of(response):
            assert event is not None, "status events never end"
            status = Status.from_json(event)
            if status.state is EngineState.READY:
                return status
            if status.state is not EngineState.LOADING:
                raise EngineError(status.error or "no model is loaded")
            if shows and status.progress is not None:
                line = clean_line(f"{status.model}: {_words(status)}")
                print(f"{CLEAR_LINE}{line}", end="", file=sys.stderr, flush=True)
    raise EngineError("the server ended while the model was loading")


def _words(status: Status) -> str:
    progress = status.progress
    assert progress is not None, "the caller has looked"
    share = f" {100 * progress.done // progress.total} %" if progress.total else ""
    return f"{progress.stage}{share}"
