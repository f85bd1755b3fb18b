"""A program at a pty, timed from the key that goes in to the bytes that come out.

The kernel tells how long a process waited for a processor while it could have run (`/proc/PID/schedstat`). Times
are given with and without it, never less than it ran, so that a busy machine does not look like a slow program.
"""

from __future__ import annotations

import errno
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import psutil

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Took:
    """How long something took: on the clock, and without waiting for a processor."""

    wall_ms: float
    own_ms: float


class Terminal:
    """A terminal of 120 by 40 with one program in it."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], size: tuple[int, int] = (120, 40)
    ) -> None:
        self.master, slave = pty.openpty()
        self._size(slave, *size)
        os.set_blocking(self.master, False)
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=_as_installed(environment) | {"TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        os.close(slave)
        self.output = bytearray()
        self._next_mark = 0xAC00  # Hangul, which nothing else here shows

    def until(self, text: str, since: int = 0) -> None:
        """Read until `text` was written after position `since` of the output."""
        wanted, deadline = text.encode(), time.perf_counter() + TIMEOUT_S
        while self.output.find(wanted, max(0, since - len(wanted))) < 0:
            if time.perf_counter() > deadline or self.process.poll() is not None:
                raise TimeoutError(f"{text!r} did not appear; last: {bytes(self.output[-400:])!r}")
            self.read(0.5)

    def read(self, timeout_s: float) -> bool:
        """Take what is there; False if nothing came."""
        if not select.select([self.master], [], [], timeout_s)[0]:
            return False
        try:
            self.output += os.read(self.master, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        return True

    def watch(self, duration_s: float) -> None:
        """Read for so long whatever comes."""
        until = time.perf_counter() + duration_s
        while (left_s := until - time.perf_counter()) > 0:
            self.read(left_s)

    def settle(self, quiet_s: float = 0.3) -> None:
        """Read until nothing has come for a while; a cursor that blinks comes twice a second."""
        while self.read(quiet_s):
            pass

    def press(self, keys: bytes) -> None:
        """Type, and read beside it: a long paste fills the pty's buffer."""
        view = memoryview(keys)
        while view:
            _, writable, _ = select.select([self.master], [self.master], [], 1.0)
            self.read(0)
            if writable:
                try:
                    view = view[os.write(self.master, view[: 1 << 12]) :]
                except BlockingIOError:
                    continue

    def key_to_screen(self, before: bytes = b"") -> Took:
        """Type a letter that was never there, behind `before`, and wait until the program has drawn it."""
        mark = chr(self._next_mark)
        self._next_mark += 1
        start, before_all = len(self.output), self._scheduled()
        began = time.perf_counter()
        self.press(before + mark.encode())
        self.until(mark, start)
        return self._took(began, before_all)

    def reaction(self, keys: bytes, text: str) -> Took:
        """Type, and wait until the program has drawn `text`."""
        start, before_all = len(self.output), self._scheduled()
        began = time.perf_counter()
        self.press(keys)
        self.until(text, start)
        return self._took(began, before_all)

    def redrawn(self, size: tuple[int, int], text: str) -> Took:
        """Change columns and rows as a window manager does, and wait until the program has drawn `text`, which only
        the new size has, and all that comes with it."""
        start, before_all = len(self.output), self._scheduled()
        began = time.perf_counter()
        self._size(self.master, *size)
        self.process.send_signal(signal.SIGWINCH)  # this pty controls no session, for which the system would do it
        self.until(text, start)
        return self._took(began, before_all)

    def cpu_s(self) -> float:
        """Return the processor time that the program has taken."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def memory_mib(self) -> float:
        """Return the memory that the program holds."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def first_paint(self, text: str) -> Took:
        """Wait until the program has drawn `text` for the first time since it was started."""
        self.until(text)
        return self._took(self.started, (0.0, 0.0))

    def close(self) -> None:
        """End the program."""
        self.process.terminate()
        deadline = time.perf_counter() + 5.0
        while self.process.poll() is None and time.perf_counter() < deadline:
            self.read(0.1)
        self.process.kill()
        self.process.wait()
        os.close(self.master)

    def _took(self, began: float, before: tuple[float, float]) -> Took:
        wall_ms = (time.perf_counter() - began) * 1e3
        ran_ms, waited_ms = self._scheduled()
        return Took(wall_ms, max(ran_ms - before[0], wall_ms - (waited_ms - before[1])))

    def _scheduled(self) -> tuple[float, float]:
        """Return how long the program's threads have run, and how long they have waited for a processor, in ms."""
        ran = waited = 0
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"):
            try:
                run, wait, _ = task.read_text().split()
            except (OSError, ValueError):
                continue
            ran, waited = ran + int(run), waited + int(wait)
        return ran / 1e6, waited / 1e6

    @staticmethod
    def _size(descriptor: int, columns: int, rows: int) -> None:
        ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _as_installed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which Python keeps compiled files, as any installation has them."""
    return {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
