"""The guard process: reads jobs from its standard input, runs them under limits, writes replies.

Started by `client.Guard` as `python -m qlocal.guard.worker`. Heavy libraries are imported by the first job that
needs them, before the job is sealed. A reply is `{"ok": value}` or `{"error": kind, "message": text}`.
"""

from __future__ import annotations

import os
import sys
from typing import Any, BinaryIO

from qlocal.clean import clean_line
from qlocal.guard import frames, jobs, limits
from qlocal.guard.errors import JobError

MAX_MESSAGE_CHARS = 500


def main() -> None:
    """Serve jobs until the client closes the pipe."""
    requests, replies = _take_over_pipes()
    limits.apply()
    while (header := requests.read(frames.HEADER.size)) != b"":
        (length,) = frames.HEADER.unpack(header)
        job = frames.unpack(requests.read(length))
        reply, is_damaged = answer(job, frames.cpu_limit_s(length, job), replies.fileno())
        replies.write(reply)
        replies.flush()
        if is_damaged:
            return


def answer(job: dict[str, Any], cpu_s: float, highest_fd: int) -> tuple[bytes, bool]:
    """Return the reply frame of a job, and whether the process should end because its state is in doubt."""
    try:
        jobs.import_for(job)
        limits.allow_cpu(cpu_s)
        with limits.sealed(highest_fd):
            return _reply(jobs.JOBS[job["job"]](job)), False
    except JobError as error:
        return _error(error.kind, error.message), False
    except RecursionError:
        return _error("refused", "what was given is nested too deeply"), False
    except MemoryError:
        return _error("memory", "memory"), True
    except BaseException as error:
        # Rust panics arrive as PanicException, which is a BaseException; whatever it was, the process starts anew.
        return _error("crash", f"{type(error).__name__}: {error}"), True


def _reply(value: Any) -> bytes:
    frame = frames.pack({"ok": value})
    if len(frame) > frames.MAX_REPLY_BYTES:
        raise JobError("output", f"the result has {len(frame)} bytes, the limit is {frames.MAX_REPLY_BYTES}")
    return frame


def _error(kind: str, message: str) -> bytes:
    return frames.pack({"error": kind, "message": clean_line(message[:MAX_MESSAGE_CHARS])})


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    # The reply pipe moves away from descriptor 1, so that a library that prints cannot break a frame; and what it
    # prints to a full error pipe is dropped instead of waiting for a reader.
    requests = os.fdopen(0, "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.set_blocking(2, False)
    return requests, replies


if __name__ == "__main__":
    main()
    sys.exit(0)
