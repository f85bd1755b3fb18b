"""Jobs as tasks of a Ray cluster: of one that runs already, or of one that is started here for this run.

A job travels with its statistics through Ray's object store; hidden states, source and results are files on a disk
that all machines share. Every machine is looked at before it gets work: one that computes otherwise gets none.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

from qlocal.errors import QLocalError, UsageError
from quantize.executors.base import Solved
from quantize.executors.worker import Failure, Site, objection, solve_there
from quantize.options import local_workers
from quantize.unit_solver import Job

OBJECT_STORE_BYTES = 1 << 30
"""Of a cluster started here: a few jobs of a 72B model. What is more waits on the disk."""
WAITING_JOBS = 1
"""Captured ahead, so that a worker that is done finds its next job."""


def require_ray() -> None:
    """UsageError when Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--cluster needs Ray, which is not installed", hint="Install it with: pip install 'qlocal[cluster]'"
        )


class RayExecutor:
    """Solves jobs on the machines of the cluster at `address`, each task with the threads of the run."""

    def __init__(self, address: str, site: Site, say: Callable[[str], None]) -> None:
        self._ray = _connect(address, site.threads)
        self._site = site
        self._say = say
        self._slots: dict[str, int] = {}
        self._at_work: dict[Any, tuple[Job, str]] = {}
        self._solve = self._ray.remote(max_retries=0)(solve_there)
        self._object = self._ray.remote(max_retries=0, num_cpus=0)(objection)
        try:
            self._look_around()
            self._check_any()
        except BaseException:
            self.close()
            raise
        say(f"{self.num_workers} workers take the layers, on machines: {sum(map(bool, self._slots.values()))}.")

    @property
    def num_workers(self) -> int:
        """How many jobs are solved at the same time."""
        return sum(self._slots.values())

    @property
    def capacity(self) -> int:
        return self.num_workers + WAITING_JOBS

    def submit(self, job: Job) -> None:
        self._look_around()
        self._check_any()
        load = dict.fromkeys(self._slots, 0)
        for _, at in self._at_work.values():
            if at in load:
                load[at] += 1
        node = min((n for n, slots in self._slots.items() if slots), key=lambda n: load[n] / self._slots[n])
        task = self._solve.options(scheduling_strategy=_only_on(node), **self._needs())
        self._at_work[task.remote(self._site, job)] = (job, node)

    def wait(self) -> Solved:
        ready, _ = self._ray.wait(list(self._at_work), num_returns=1)
        job, _ = self._at_work.pop(ready[0])
        exceptions = self._ray.exceptions
        try:
            outcome = self._ray.get(ready[0])
        except exceptions.RayTaskError:
            raise  # a defect of ours, which would come again
        except exceptions.RayError:  # the worker, its machine, or what it held has gone
            return Solved(job, None)
        if isinstance(outcome, Failure):
            raise QLocalError(outcome.message, hint=outcome.hint)
        return Solved(job, outcome)

    def close(self) -> None:
        self._ray.shutdown()

    def _needs(self) -> dict[str, float]:
        """What a task takes of its machine."""
        return {"num_cpus": self._site.threads, "num_gpus": 0 if self._site.device == "cpu" else 1}

    def _look_around(self) -> None:
        """Take in machines that have joined, ask each whether it computes as we do, and forget those that have left."""
        alive = {node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]}
        self._slots = {node: slots for node, slots in self._slots.items() if node in alive}
        for node in alive.keys() - self._slots.keys():
            refused = self._ray.get(self._object.options(scheduling_strategy=_only_on(node)).remote(self._site))
            if refused is not None:
                self._say(f"A machine of the cluster is refused: {refused}.")
            self._slots[node] = 0 if refused is not None else self._room(alive[node])

    def _room(self, resources: dict[str, float]) -> int:
        """Return how many tasks a machine takes at once."""
        room = int(resources.get("CPU", 0)) // self._site.threads
        return room if self._site.device == "cpu" else min(room, int(resources.get("GPU", 0)))

    def _check_any(self) -> None:
        if not self.num_workers:
            raise UsageError(
                f"no machine of the cluster takes tasks of {self._site.threads} threads that compute as this one does",
                hint="Set OMP_NUM_THREADS to what the smallest has; versions and instruction sets must be the same.",
            )


def _connect(address: str, threads: int) -> Any:
    """Return the module `ray`, connected. UsageError when nobody answers at `address`."""
    require_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU leave its variables alone
    import ray  # an extra, and slow to import

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    workers = local_workers(address)
    if workers is not None:
        quiet |= {
            "num_cpus": (workers or max(1, len(os.sched_getaffinity(0)) // threads)) * threads,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(address if workers is None else "local", **quiet)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # Ray has no class of its own for what keeps it from starting
        ray.shutdown()
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(
            f"--cluster {address}: Ray did not start, or does not answer: {reason[:200]}",
            hint="`ray start --head` starts a cluster, --cluster local one here; on a busy machine, try twice.",
        ) from error
    return ray


def _only_on(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # imported where ray is

    return NodeAffinitySchedulingStrategy(node, soft=False)
