"""How long after a request is cancelled is its engine free? While a long prompt is read, while an answer is written.

    python benchmarks/cancelling.py MODEL [--tokens 8192] [--times 12]

A rank in a process of its own, as the server starts it. At random moments of reading a prompt, each time another,
or of answering, it is told to cancel; the clock runs until it says that the request ended. Prints medians and worst.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from qlocal.engine.connection import Connection
from qlocal.protocol import Cancel, Failed, Finished, Load, Message, Reading, Ready, Sampling, Shutdown, Submit, Tokens

ROOT = Path(__file__).resolve().parents[1]
READING_S, ANSWERING_TOKENS = (0.3, 6.0), (2, 30)


class Rank:
    """A rank and our end of its socket."""

    def __init__(self, load: Load) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "qlocal.engine.rank", "--fd", str(theirs.fileno())]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._connection = Connection(ours)
        self.send(load)
        self.until(Ready)

    def send(self, message: Message) -> None:
        self._connection.send(message)

    def until(self, kind: type[Message], timeout_s: float | None = None) -> list[Message]:
        """Return what comes up to a message of `kind`, or within a time."""
        found: list[Message] = []
        deadline = None if timeout_s is None else time.perf_counter() + timeout_s
        while not any(isinstance(message, kind) for message in found):
            left_s = None if deadline is None else deadline - time.perf_counter()
            if left_s is not None and left_s <= 0:
                break
            found += self._connection.receive(wait=True, timeout_s=left_s)
            if failed := next((message for message in found if isinstance(message, Failed)), None):
                raise SystemExit(failed.message)
        return found

    def close(self) -> None:
        self.send(Shutdown())
        self._process.wait()


def cancelled_s(rank: Rank, name: str, prompt: list[int], *, is_reading: bool) -> float | None:
    """Ask, cancel at a random moment, and return the seconds until the end is told; None if the moment was missed."""
    rank.send(Submit(name, prompt, 4096, [], Sampling(temperature=0.0), 1000))
    if is_reading:
        seen = rank.until(Tokens, timeout_s=random.uniform(*READING_S))
        if any(isinstance(message, Tokens) for message in seen) or not any(isinstance(m, Reading) for m in seen):
            seen = []
    else:
        seen = [message for _ in range(random.randint(*ANSWERING_TOKENS)) for message in rank.until(Tokens)]
    began = time.perf_counter()
    rank.send(Cancel(name))
    rank.until(Finished)
    return time.perf_counter() - began if seen else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--times", type=int, default=12)
    args = parser.parse_args()
    random.seed(1)
    rank = Rank(Load(str(args.model), ["cpu"], max_context=args.tokens + 4200, slots=1))
    print("| while | times | median | worst |\n|---|---:|---:|---:|")
    for is_reading, words, tokens in ((True, "a prompt is read", args.tokens), (False, "an answer is written", 32)):
        taken: list[float] = []
        while len(taken) < args.times:
            prompt = [random.randrange(1000) for _ in range(tokens)]
            if (found := cancelled_s(rank, f"{words} {random.random()}", prompt, is_reading=is_reading)) is not None:
                taken.append(found)
        print(f"| {words} | {len(taken)} | {statistics.median(taken):.3f} s | {max(taken):.3f} s |", flush=True)
    rank.close()


if __name__ == "__main__":
    main()
