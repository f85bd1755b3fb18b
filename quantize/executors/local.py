"""One job at a time, in this process."""

from __future__ import annotations

from quantize.executors.base import Solved
from quantize.unit_solver import Job, OnLoss, UnitSolver


class LocalExecutor:
    """Solves a job when it is submitted. on_loss: told of every linear while it is worked on."""

    capacity = 1

    def __init__(self, solver: UnitSolver, on_loss: OnLoss) -> None:
        self._solver = solver
        self._on_loss = on_loss
        self._solved: list[Solved] = []

    def submit(self, job: Job) -> None:
        self._solved.append(Solved(job, self._solver.solve(job, self._on_loss)))

    def wait(self) -> Solved:
        return self._solved.pop(0)

    def close(self) -> None:
        """Nothing is held."""
