"""How a process ends, and how it ended, in words."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import NoReturn

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


def leave_process(code: int) -> NoReturn:
    """End this process as usual, but for taking the interpreter apart.

    Threads of torch.distributed may still let go of tensors then, and one that wants the interpreter meanwhile aborts
    the process: seen about once in 50 ends on a busy machine.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
