"""How long after a request is cancelled is its engine free? While a long prompt is read, while an answer is written.

    python benchmarks/cancelling.py MODEL [--tokens 8192] [--times 12]

A rank in a process of its own, as the server starts it. At random moments of reading a prompt, each time another,
or of answering, it is told to cancel; the clock runs until it says that the request ended. Prints medians and worst.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlocal.protocol import Cancel, Finished, Load, Reading, Ready, Sampling, Submit, Tokens
from tests.engine.rank_process import Rank

READING_S, ANSWERING_TOKENS = (0.3, 6.0), (2, 30)


def cancelled_s(rank: Rank, name: str, prompt: list[int], *, is_reading: bool) -> float | None:
    """Ask, cancel at a random moment, and return the seconds until the end is told; None if the moment was missed."""
    rank.send(Submit(name, prompt, 4096, [], Sampling(temperature=0.0), 1000))
    if is_reading:
        time.sleep(random.uniform(*READING_S))
    else:
        for _ in range(random.randint(*ANSWERING_TOKENS)):
            rank.until(Tokens)
    began = time.perf_counter()
    rank.send(Cancel(name))
    kinds = {type(message) for message in rank.until(Finished)}
    took_s = time.perf_counter() - began
    return None if is_reading and (Tokens in kinds or Reading not in kinds) else took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--times", type=int, default=12)
    args = parser.parse_args()
    random.seed(1)
    rank = Rank(threads=None)
    rank.send(Load(str(args.model), ["cpu"], max_context=args.tokens + 4200, slots=1))
    rank.until(Ready)
    print("| while | times | median | worst |\n|---|---:|---:|---:|")
    for is_reading, words, tokens in ((True, "a prompt is read", args.tokens), (False, "an answer is written", 32)):
        taken: list[float] = []
        while len(taken) < args.times:
            prompt = [random.randrange(1000) for _ in range(tokens)]
            if (found := cancelled_s(rank, f"{words} {random.random()}", prompt, is_reading=is_reading)) is not None:
                taken.append(found)
        print(f"| {words} | {len(taken)} | {statistics.median(taken):.3f} s | {max(taken):.3f} s |", flush=True)
    rank.socket.close()
    rank.process.wait()


if __name__ == "__main__":
    main()
