"""Run a rank whose Nth allocation fails: `python -m tests.engine.allocations MODEL` with the shim preloaded prints what
came of each.

A process that has imported everything forks for every N, so that one takes a fraction of a second. A rank that was
refused memory may answer all the same, say in a sentence that memory ran out, or be ended by a signal, which the
process that watches it sees. What it may not do is answer with other tokens, say something else, or say nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import qlocal.engine.loading  # noqa: F401  (what a rank imports, imported once)
from qlocal.engine import rank
from qlocal.engine.connection import Closed, Connection
from qlocal.protocol import Failed, Finished, Load, Message, Ready, Sampling, Shutdown, Submit, Tokens

TIMEOUT_S = 120.0
SIZES = {"small": 512, "large": 64 << 10}
QUESTION = Submit("one", [5 + i * 7 % 250 for i in range(90)], 6, [], Sampling(temperature=0.0), 320)
OUT_OF_MEMORY = "memory ran out", "out of memory"
LOST = "the engine failed: SystemError: ", "the engine failed: SyntaxError: "
"""Python itself may lose the reason, and then says that one of these went wrong."""


class Silent(Exception):
    """The rank neither answered nor ended."""


class Watched:
    """A rank in a fork, with the fault armed. at: 0 arms none, and counts."""

    def __init__(self, model: str, at: int, least: int, is_lasting: bool) -> None:
        ours, theirs = socket.socketpair()
        counted, counts = os.pipe()
        self._errors = os.memfd_create("errors")
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            os.dup2(self._errors, 2)
            shim = ctypes.CDLL(None)

            def serve(connection: Connection) -> None:
                # From here on there is somebody to tell.
                shim.allocation_arm(ctypes.c_long(at or -1), ctypes.c_size_t(least), int(is_lasting))
                real_serve(connection)

            real_serve, rank.serve = rank.serve, serve
            code = rank.main(["--fd", str(theirs.detach())])
            seen = shim.allocation_seen()
            shim.allocation_arm(ctypes.c_long(0), ctypes.c_size_t(0), 0)
            os.write(counts, str(seen).encode())
            os._exit(code)
        theirs.close()
        os.close(counts)
        self._counted = os.fdopen(counted)
        self._connection = Connection(ours)
        self.send(Load(model, ["cpu"], max_context=256, slots=2, dtype="float32", threads=1, kv="q8"))

    def send(self, message: Message) -> None:
        with suppress(Closed):  # what it said before it ended is read all the same
            self._connection.send(message)

    def last_errors(self) -> str:
        """Return the end of what it wrote where nobody reads."""
        with os.fdopen(self._errors, "rb") as errors:
            errors.seek(0)
            return errors.read()[-1500:].decode("utf-8", "replace")

    def messages(self) -> Iterator[Message]:
        """Yield what it says, to its end."""
        deadline = time.monotonic() + TIMEOUT_S
        with suppress(Closed):
            while time.monotonic() < deadline:
                select.select([self._connection.socket], [], [], 1.0)
                yield from self._connection.receive(wait=False)
        if time.monotonic() >= deadline:
            raise Silent

    def end(self) -> tuple[int, int]:
        """Return how the process ended, as `subprocess` has it, and how many allocations it has counted."""
        self._connection.socket.close()
        deadline = time.monotonic() + TIMEOUT_S
        while (ended := os.waitpid(self._pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        if ended[0] == 0:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise Silent
        with self._counted as counted:
            return os.waitstatus_to_exitcode(ended[1]), int(counted.read() or 0)


def outcome(watched: Watched) -> tuple[str, list[list[int]]]:
    """Ask the rank twice and tell it to end; return what it said of memory, and its answers that are whole."""
    said, answers, tokens = "", [], []
    for message in watched.messages():
        match message:
            case Ready():
                watched.send(QUESTION)
            case Tokens():
                tokens += message.token_ids
            case Finished() if message.reason == "error":
                said, tokens = message.message or "nothing", []
                watched.send(QUESTION if not answers else Shutdown())
            case Finished():
                answers.append(tokens)
                tokens = []
                watched.send(QUESTION if len(answers) < 2 else Shutdown())
            case Failed():
                said = message.message
    return said, answers


def verdict(model: str, at: int, least: int, is_lasting: bool, right: list[int]) -> str:
    """Say what came of one fault; what begins with WRONG must not be."""
    watched = Watched(model, at, least, is_lasting)
    try:
        said, answers = outcome(watched)
        code, _ = watched.end()
    except Silent:
        return "WRONG: it neither answered nor ended"
    if any(answer != right for answer in answers):
        return f"WRONG: other tokens: {answers}"
    if any(words in said for words in OUT_OF_MEMORY):
        return "said that memory ran out"
    if said:
        return "said that it failed, not of what" if said.startswith(LOST) else f"WRONG: {at}: it said: {said}"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if code == 0 and len(answers) == 2:
        return "answered all the same"
    return f"WRONG: {at}: ended with {code}, {len(answers)} answers: {watched.last_errors()}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--faults", type=int, default=20, help="of each kind, evenly over all allocations")
    arguments = parser.parse_args()
    found: dict[str, Counter[str]] = {}
    for name, least in SIZES.items():
        watched = Watched(arguments.model, 0, least, is_lasting=False)
        said, answers = outcome(watched)
        code, count = watched.end()
        assert (said, code, len(answers)) == ("", 0, 2) and answers[0] == answers[1], (said, code, answers)
        for is_lasting in (False, True):
            faults = {1 + count * i // arguments.faults for i in range(arguments.faults)}
            kind = f"{name}, {'all from one of' if is_lasting else 'one of'} {count}"
            found[kind] = Counter(verdict(arguments.model, at, least, is_lasting, answers[0]) for at in sorted(faults))
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
