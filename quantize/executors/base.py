"""The contract of an executor, and the loop around it: jobs in, finished units out in whatever order they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from qlocal.errors import EngineError
from quantize.recipe import HEAD_UNIT
from quantize.state import Unit
from quantize.unit_solver import Job

MAX_DEATHS = 3
"""How many workers one unit may cost."""


@dataclass(frozen=True)
class Solved:
    """What became of a job. result: None when its worker died, which costs nothing but the time it had taken."""

    job: Job
    result: Unit | None


class Executor(Protocol):
    """Solves jobs."""

    @property
    def capacity(self) -> int:
        """How many jobs it takes at once, those that wait for a worker included."""

    def submit(self, job: Job) -> None:
        """Take a job; QLocalError when it cannot be solved anywhere."""

    def wait(self) -> Solved:
        """Return one job that is over, whichever is first. QLocalError is what solving it has raised."""

    def close(self) -> None:
        """Drop what is still worked on, and let go of every worker."""


def solve_all(jobs: Iterable[Job], executor: Executor, say: Callable[[str], None]) -> Iterator[tuple[Job, Unit]]:
    """Yield every job with its result. The next job is asked for (and captured) when the executor has room for it.

    A job whose worker died is given out again; EngineError when it has cost `MAX_DEATHS` workers.
    """
    waiting, deaths, at_work = iter(jobs), Counter[str](), 0
    while True:
        while at_work < executor.capacity and (job := next(waiting, None)) is not None:
            executor.submit(job)
            at_work += 1
        if not at_work:
            return
        solved = executor.wait()
        if solved.result is not None:
            at_work -= 1
            yield solved.job, solved.result
            continue
        deaths[solved.job.unit] += 1
        name = solved.job.unit if solved.job.unit == HEAD_UNIT else f"layer {solved.job.unit}"
        if deaths[solved.job.unit] == MAX_DEATHS:
            raise EngineError(
                f"{name}: {MAX_DEATHS} workers died of it",
                hint="They may lack memory; finished layers are kept, and the same command continues.",
            )
        say(f"The worker of {name} died; another one takes it.")
        executor.submit(solved.job)
