"""What the worker answers when a job fails, and what a sealed job cannot do."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from qlocal.guard import frames, jobs, limits, worker
from qlocal.guard.errors import JobError


class PanicException(BaseException):
    """As pyo3 raises it for a Rust panic: not an Exception."""


def answer_of(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> tuple[dict[str, Any], bool]:
    def job(_: jobs.Job) -> None:
        raise raised

    monkeypatch.setitem(jobs.JOBS, "ready", job)
    monkeypatch.setattr(limits, "allow_cpu", lambda _: None)
    monkeypatch.setattr(limits, "OPEN_FILES", 1024)
    reply, is_damaged = worker.answer({"job": "ready"}, 2.0, 1000)
    return frames.unpack(reply[frames.HEADER.size :]), is_damaged


@pytest.mark.parametrize("raised", [PanicException("index out of bounds"), SystemExit(1), ZeroDivisionError()])
def test_a_crash_is_reported_and_ends_the_process(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    reply, is_damaged = answer_of(monkeypatch, raised)
    assert reply["error"] == "crash" and type(raised).__name__ in reply["message"] and is_damaged


def test_used_up_memory_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer_of(monkeypatch, MemoryError()) == ({"error": "memory", "message": "memory"}, True)


def test_a_refusal_keeps_the_process_and_has_a_bounded_text(monkeypatch: pytest.MonkeyPatch) -> None:
    reply, is_damaged = answer_of(monkeypatch, JobError("template", "x" * 10_000))
    assert reply == {"error": "template", "message": "x" * worker.MAX_MESSAGE_CHARS} and not is_damaged


SEALED = """
import os, socket, ctypes
from qlocal.guard import limits
limits.apply()
def refused(action):
    try: action()
    except OSError: return True
    return False
assert refused(lambda: socket.socket()), "audit hook"
assert refused(lambda: open("/tmp/written-by-the-guard", "w"))
assert refused(lambda: os.system("true"))
assert refused(lambda: os.posix_spawn("/bin/true", ["true"], {}))
assert not refused(lambda: open("/dev/null").close()), "imports may read"
with limits.sealed(2):
    assert refused(lambda: open("/dev/null")), "no free descriptor in a job"
assert not refused(lambda: open("/dev/null").close())
print("held")
"""


def test_the_limits_forbid_sockets_files_and_programs() -> None:
    done = subprocess.run([sys.executable, "-c", SEALED], capture_output=True, text=True, check=False)
    assert done.stdout == "held\n", done.stderr
