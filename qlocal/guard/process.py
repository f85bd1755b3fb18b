"""The guard's process as its client sees it: started by exec, spoken to in frames with a deadline, killed on breach."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from qlocal.errors import EngineError
from qlocal.guard import frames

_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "SYSTEMROOT")
_CHUNK_BYTES = 1 << 18
_MAX_STDERR_BYTES = 4096


class Gone(Exception):
    """The process is lost. reason: a breach (`time` of the processor, `wait`, `memory`, `output`), `killed` (by someone
    else), `ended`."""

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr = stderr


class GuardProcess:
    """One running helper. After `Gone` it is dead and must be replaced."""

    def __init__(self) -> None:
        # exec and not fork: the parent may hold torch, threads and device contexts. -P: nothing from the working
        # folder is imported. A session of its own: Ctrl-C in a terminal is for the program, not for the helper.
        command = [sys.executable, "-P", "-B", "-m", "qlocal.guard.worker"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_environment(),
                cwd="/",
                close_fds=True,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise EngineError(f"the guard process cannot be started: {error}") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr, "all three are pipes"
        self._stdin, self._stdout, self._stderr = (
            self._process.stdin.fileno(),
            self._process.stdout.fileno(),
            self._process.stderr.fileno(),
        )
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, frame: bytes, limit_s: float) -> Any:
        """Send a request frame and return the reply's value; Gone when it takes longer or the process ends."""
        deadline = time.monotonic() + limit_s
        self._write(frame, deadline)
        (length,) = frames.HEADER.unpack(self._read(frames.HEADER.size, deadline))
        if length > frames.MAX_REPLY_BYTES:
            self._fail("output")
        return frames.unpack(self._read(length, deadline))

    def close(self) -> None:
        """End the process and give back its pipes."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(write=True, deadline=deadline)
            try:
                view = view[os.write(self._stdin, view[:_CHUNK_BYTES]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._fail("ended")

    def _read(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._wait(write=False, deadline=deadline)
            try:
                part = os.read(self._stdout, min(_CHUNK_BYTES, size - len(parts)))
            except BlockingIOError:
                continue
            if not part:
                self._fail("ended")
            parts += part
        return bytes(parts)

    def _wait(self, *, write: bool, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._stdin if write else self._stdout, select.POLLOUT if write else select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            self._fail("wait")

    def _fail(self, reason: str) -> NoReturn:
        self._process.kill()
        status, stderr = self._process.wait(), self._last_words()
        if reason == "ended" and status == -signal.SIGXCPU:
            reason = "time"
        elif reason == "ended" and status == -signal.SIGKILL:
            reason = "killed"
        elif "memory allocation" in stderr:  # Rust's last words before it aborts
            reason = "memory"
        raise Gone(reason, stderr)

    def _last_words(self) -> str:
        try:
            return os.read(self._stderr, _MAX_STDERR_BYTES).decode("utf-8", "replace")
        except BlockingIOError:
            return ""


def _environment() -> dict[str, str]:
    """Return a clean environment: no tokens or keys of the user reach the helper."""
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONUTF8": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        # One arena: each further one reserves 64 MiB of the address space that is limited.
        "MALLOC_ARENA_MAX": "1",
    }
