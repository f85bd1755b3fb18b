"""Jobs solved in another order, by workers that die: the bytes are those of one process. No Ray needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlocal.errors import EngineError, QLocalError
from quantize import pipeline
from quantize.cli import main
from quantize.executors import ray_cluster, worker
from quantize.executors.base import MAX_DEATHS, Solved, solve_all
from quantize.executors.worker import Failure, Site, objection, solve_there
from quantize.options import local_workers
from quantize.state import Unit
from quantize.unit_solver import Job
from tests import tiny
from tests.quantize.test_resume import content

ARGUMENTS = ["--format", "awq,gptq,gguf", "--type", "q4_k_m", "--samples", "4", "--seq-len", "64", "--no-verify"]


class Backwards:
    """Solves the newest job first, as `worker.solve_there` does; `deaths` says how often the worker of a unit dies."""

    def __init__(self, site: Site, deaths: dict[str, int] | None = None, stop_after: int | None = None) -> None:
        self.capacity = 3
        self.order: list[str] = []
        self.closed = False
        self._site = site
        self._deaths = dict(deaths or {})
        self._stop_after = stop_after
        self._jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self) -> Solved:
        if len(self.order) == self._stop_after:
            raise KeyboardInterrupt
        job = self._jobs.pop()
        if self._deaths.get(job.unit, 0):
            self._deaths[job.unit] -= 1
            return Solved(job, None)
        self.order.append(job.unit)
        outcome = solve_there(self._site, job)
        if isinstance(outcome, Failure):
            raise QLocalError(outcome.message, hint=outcome.hint)
        return Solved(job, outcome)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("source") / "m", "qwen2", {"num_hidden_layers": 4})


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of what one process makes, a layer after the other."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert main([str(source), "--out", str(out), *ARGUMENTS]) == 0
    return content(out)


def use(monkeypatch: pytest.MonkeyPatch, **settings: object) -> list[Backwards]:
    """Let `--cluster` solve by `Backwards`; returns the executors as they are made."""
    made: list[Backwards] = []

    def make(address: str, site: Site, say: object) -> Backwards:
        made.append(Backwards(site, **settings))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(pipeline, "RayExecutor", make)
    monkeypatch.setattr(pipeline, "require_ray", lambda: None)
    return made


def test_units_finished_out_of_order_give_the_same_bytes(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = use(monkeypatch)
    assert main([str(source), "--out", str(tmp_path / "out"), *ARGUMENTS, "--cluster", "somewhere"]) == 0
    assert made[0].order != sorted(made[0].order, key="0123head".index) and made[0].closed
    assert content(tmp_path / "out") == expected


def test_a_dead_worker_costs_its_task_alone(
    source: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = use(monkeypatch, deaths={"2": 1, "head": MAX_DEATHS - 1})
    assert main([str(source), "--out", str(tmp_path / "out"), *ARGUMENTS, "--cluster", "somewhere"]) == 0
    assert sorted(made[0].order) == ["0", "1", "2", "3", "head"]
    assert "The worker of layer 2 died; another one takes it." in capsys.readouterr().err
    assert content(tmp_path / "out") == expected


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_an_interrupted_cluster_run_continues_without_the_cluster(
    source: Path, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    arguments = [str(source), "--out", str(tmp_path / "out"), *ARGUMENTS]
    with monkeypatch.context() as patch:
        made = use(patch, stop_after=finished)
        assert main([*arguments, "--cluster", "somewhere"]) == 130
    assert made[0].closed and len(made[0].order) == finished
    assert main(arguments) == 0
    assert content(tmp_path / "out") == expected


def test_a_unit_that_kills_every_worker_ends_the_run() -> None:
    class Deadly:
        capacity = 1

        def submit(self, job: Job) -> None:
            self.job = job

        def wait(self) -> Solved:
            return Solved(self.job, None)

        def close(self) -> None:
            """Nothing is held."""

    said: list[str] = []
    with pytest.raises(EngineError, match=f"layer 7: {MAX_DEATHS} workers died of it"):
        list(solve_all([Job("7")], Deadly(), said.append))
    assert len(said) == MAX_DEATHS - 1


def test_jobs_are_made_only_when_there_is_room() -> None:
    events: list[str] = []

    class Queue:
        capacity = 2

        def __init__(self) -> None:
            self.jobs: list[Job] = []

        def submit(self, job: Job) -> None:
            self.jobs.append(job)

        def wait(self) -> Solved:
            return Solved(self.jobs.pop(0), Unit({}, {}, [], 0.0))

        def close(self) -> None:
            """Nothing is held."""

    def jobs():  # type: ignore[no-untyped-def]
        for unit in "0123":
            events.append(f"made {unit}")
            yield Job(unit)

    for job, _ in solve_all(jobs(), Queue(), events.append):
        events.append(f"done {job.unit}")
    assert events == ["made 0", "made 1", "done 0", "made 2", "done 1", "made 3", "done 2", "done 3"]


def test_a_machine_that_computes_otherwise_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch)
    real = worker.arithmetic
    monkeypatch.setattr(worker, "arithmetic", lambda device: real(device) | {"processor": "Other SSE2"})
    assert main([str(source), "--out", str(tmp_path / "out"), *ARGUMENTS, "--cluster", "somewhere"]) == 2
    assert "processor is Other SSE2, not " in capsys.readouterr().err


def test_a_machine_that_does_not_see_the_folders_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path / "no-source", "m", None, tmp_path, "cpu", 1, ())  # type: ignore[arg-type]
    refused = objection(site)
    assert refused is not None and refused.endswith(f"{tmp_path / 'no-source'} is not there")


def test_the_journal_of_another_instruction_set_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(source), "--out", str(tmp_path / "out"), *ARGUMENTS]
    with monkeypatch.context() as patch:
        use(patch, stop_after=1)
        assert main([*arguments, "--cluster", "somewhere"]) == 130
    real = pipeline.arithmetic
    monkeypatch.setattr(pipeline, "arithmetic", lambda device: real(device) | {"native kernels": "other"})
    assert main(arguments) == 2
    assert "arithmetic native kernels was" in capsys.readouterr().err


def test_without_ray_the_command_says_how_to_install_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    assert main([str(source), "--out", str(tmp_path / "out"), *ARGUMENTS, "--cluster", "local"]) == 2
    assert "pip install 'qlocal[cluster]'" in capsys.readouterr().err
    assert not (tmp_path / "out.partial").exists()


def test_cluster_addresses() -> None:
    assert local_workers("local") == 0 and local_workers("local:3") == 3
    assert local_workers("auto") is None and local_workers("10.0.0.1:6379") is None
    for wrong in ("local:0", "local:x", "local:999"):
        with pytest.raises(QLocalError, match="--cluster is"):
            local_workers(wrong)
