"""Run the targets for a number of cases or seconds, and tell what came of it.

`python -m tests.fuzz.run --seconds 600` is `make fuzz`. A case is known by its target, seed and number, so a finding is
found again with `--target NAME --seed SEED --first NUMBER --cases 1`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from qlocal.guard.client import Guard
from tests.fuzz.targets import Target, targets

MEMORY = Path("/dev/shm")
MAX_FINDINGS = 20


@dataclass
class Tally:
    """What a target has come to. findings: (number of the case, the error)."""

    name: str
    cases: int = 0
    read: int = 0
    seconds: float = 0.0
    findings: list[tuple[int, str]] = field(default_factory=list)


def run(target: Target, seed: int, numbers: range, until: float, tally: Tally) -> None:
    """Run cases of one target until the clock of the processor shows `until`."""
    started = time.process_time()
    for number in numbers:
        tally.cases += 1
        try:
            tally.read += target.read(Random(f"{target.name} {seed} {number}"))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if len(tally.findings) < MAX_FINDINGS:
                where = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
                tally.findings.append((number, told))
        if time.process_time() > until:
            break
    tally.seconds += time.process_time() - started


def fuzz(cases: int, seconds: float, seed: int, only: str | None = None, first: int = 0) -> list[Tally]:
    """Return the tallies of all targets after `cases` in all, or after `seconds` of processor time."""
    tallies = []
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder, Guard() as guard:
        chosen = [target for target in targets(Path(folder), guard) if only in (None, target.name)]
        total = sum(target.share for target in chosen)
        for target in chosen:
            tally = Tally(target.name)
            numbers = range(first, first + max(1, round(cases * target.share / total)))
            run(target, seed, numbers, time.process_time() + seconds / len(chosen), tally)
            tallies.append(tally)
    return tallies


def table(tallies: list[Tally]) -> str:
    """Return what came of it as Markdown."""
    lines = ["| target | cases | read | refused | seconds | findings |", "|---|---|---|---|---|---|"]
    for t in tallies:
        bad = t.cases - t.read - len(t.findings)
        lines.append(f"| {t.name} | {t.cases:,} | {t.read:,} | {bad:,} | {t.seconds:.1f} | {len(t.findings)} |")
    all_cases, all_seconds = sum(t.cases for t in tallies), sum(t.seconds for t in tallies)
    lines.append(f"| all | {all_cases:,} | {sum(t.read for t in tallies):,} | | {all_seconds:.1f} | "
                 f"{sum(len(t.findings) for t in tallies)} |")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed the readers of strangers' files with hostile ones.")
    parser.add_argument("--cases", type=int, default=1 << 62, help="in all")
    parser.add_argument("--seconds", type=float, default=600.0, help="of processor time, in all")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--target", help="one target alone")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    args = parser.parse_args()
    tallies = fuzz(args.cases, args.seconds, args.seed, args.target, args.first)
    print(f"Seed {args.seed}.\n\n{table(tallies)}")
    for tally in tallies:
        for number, told in tally.findings:
            print(f"{tally.name}, case {number}: {told}")
    return 1 if any(tally.findings for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
