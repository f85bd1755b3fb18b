"""How a process ended, in words."""

from __future__ import annotations

import signal

_REASONS = {
    signal.SIGKILL: "; the machine may have run out of memory",
    signal.SIGBUS: "; a model file may have changed or its disk may have failed",
}


def ending(name: str, code: int) -> str:
    """Return a sentence about `name`, which ended with exit code `code`, or by signal `-code`."""
    if code >= 0:
        return f"{name} ended with exit code {code}"
    signal_number = signal.Signals(-code)
    return f"{name} was ended by {signal_number.name}{_REASONS.get(signal_number, '')}"
