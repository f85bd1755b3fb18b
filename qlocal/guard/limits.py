"""What the guard may use: memory, time, files, and no network. Called inside the helper process alone.

The limits bind whatever runs here, compiled libraries included; the audit hook adds what the kernel's limits
do not cover. Jobs run sealed: without a free file descriptor, nothing can be opened or connected at all.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MEMORY_BYTES = 512 << 20
OPEN_FILES = 12
"""While starting and importing; during a job there is no free descriptor."""
_LIFETIME_S = 1e7
_FORBIDDEN_EVENTS = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "ctypes.",
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def apply() -> None:
    """Set the limits that hold for the life of the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    signal.setitimer(signal.ITIMER_PROF, _LIFETIME_S)
    sys.addaudithook(_audit)


def allow_cpu(seconds: float) -> None:
    """Give the next job `seconds` of CPU time; the kernel counts the life of the process, so the limit moves."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(_cpu_used() + seconds), hard))


def _cpu_used() -> float:
    """Return the CPU seconds since `apply`, by the clock that RLIMIT_CPU is held against.

    That clock counts ticks: on a virtual machine whose processor is taken away now and then it runs up to half
    as fast again as getrusage, which is corrected for that. ITIMER_PROF is the one way to read it.
    """
    remaining, _ = signal.getitimer(signal.ITIMER_PROF)
    return _LIFETIME_S - remaining


@contextmanager
def sealed(highest_fd: int) -> Iterator[None]:
    """Run a block in which no file and no socket can be opened; `highest_fd` is the last one in use."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest_fd + 1, OPEN_FILES))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    # OSError and not a class of our own: imports that would like to write a cache expect exactly this.
    if event.startswith(_FORBIDDEN_EVENTS):
        raise PermissionError(f"{event} is not allowed in the guard")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITE_FLAGS:
        raise PermissionError("writing files is not allowed in the guard")
