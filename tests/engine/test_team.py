"""Ranks as real processes: they answer as one device does, and none outlives the others."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qlocal.config import Nodes
from qlocal.protocol import Failed, Finished, Load, Ready, Started, Tokens
from tests import tiny
from tests.engine.running import VOCAB, request
from tests.engine.test_rank import Rank
from tests.memory_checkpoint import random_ids

PROMPT = random_ids(VOCAB, 12)
END_S = 20.0
TWO = ["cpu", "cpu"]
Start = Callable[[], Rank]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts ranks, and ends what they leave; their temporary folder is the test's."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started: list[Rank] = []

    def one() -> Rank:
        started.append(Rank())
        return started[-1]

    yield one
    for rank in started:
        rank.socket.close()
        rank.process.kill()
        rank.process.communicate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("team") / "model", "llama")


ON_NODES = """
import os, sys
from pathlib import Path
import psutil
from qlocal import devices
from qlocal.engine.loading import load_engine
from qlocal.protocol import Load
devices._NODES = Path(sys.argv[2])
engine = load_engine(Load(sys.argv[1], ["cpu", "cpu"], dtype="float32", threads=2, split="tensor"), lambda _: None)
ranks = [psutil.Process(), *psutil.Process().children()]
print([sorted({cpu for t in rank.threads() for cpu in os.sched_getaffinity(t.id)}) for rank in ranks])
"""


def test_ranks_compute_each_on_a_numa_node(model: Path, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("one CPU cannot be divided")
    for node in (0, 1):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{cpus[node]}\n")
    command = [sys.executable, "-c", ON_NODES, str(model), str(tmp_path)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert found.strip().splitlines()[-1] == f"[[{cpus[0]}], [{cpus[1]}]]"


@pytest.fixture(scope="module")
def text(model: Path) -> list[int]:
    """What one device answers."""
    rank = Rank()
    rank.send(Load(str(model), ["cpu"], dtype="float32", threads=1))
    rank.until(Ready)
    found = answer(rank)
    rank.socket.close()
    rank.process.communicate(timeout=END_S)
    return found


def answer(rank: Rank) -> list[int]:
    """Ask twice: the second prompt begins as the first does, so that a part of a block of the cache is copied."""
    found = []
    for prompt, cached in ((PROMPT, 0), ([*PROMPT[:8], 7, 7, 7], 8)):
        rank.send(request("a", prompt, 10))
        messages = rank.until(Finished)
        assert [m.cached_tokens for m in messages if isinstance(m, Started)] == [cached]
        found += [i for message in messages if isinstance(message, Tokens) for i in message.token_ids]
    return found


def load(model: Path, nodes: Nodes | None = None, devices: list[str] | None = None) -> Load:
    return Load(str(model), devices or TWO, dtype="float32", threads=2, split="tensor", nodes=nodes)


def ready(rank: Rank) -> Ready:
    message = rank.until(Ready)[-1]
    assert isinstance(message, Ready)
    return message


def failure(rank: Rank) -> str:
    message = rank.until(Failed)[-1]
    assert isinstance(message, Failed)
    return message.message


def children(rank: Rank) -> list[psutil.Process]:
    return psutil.Process(rank.process.pid).children()


def is_gone(process: psutil.Process) -> bool:
    deadline = time.monotonic() + END_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_ranks_answer_as_one_device_and_leave_nothing(
    start: Start, model: Path, text: list[int], tmp_path: Path
) -> None:
    rank = start()
    rank.send(load(model))
    told = ready(rank)
    assert (told.plan["split"], told.devices) == ("tensor", TWO)
    assert answer(rank) == text
    (other,) = children(rank)
    assert list(tmp_path.iterdir())
    rank.socket.close()
    assert rank.process.wait(END_S) == 0
    assert is_gone(other) and not list(tmp_path.iterdir())


def test_a_rank_that_dies_while_nobody_asks_ends_the_engine_with_the_reason(start: Start, model: Path) -> None:
    rank = start()
    rank.send(load(model))
    ready(rank)
    children(rank)[0].kill()
    assert failure(rank) == "rank 1 (cpu) was ended by SIGKILL; the machine may have run out of memory"
    assert rank.process.wait(END_S) == 1


@pytest.mark.slow
def test_a_rank_that_dies_in_the_middle_of_an_answer_ends_the_engine_with_the_reason(start: Start, model: Path) -> None:
    rank = start()
    rank.send(load(model, devices=["cpu"] * 4))
    ready(rank)
    rank.send(request("a", PROMPT, 450))
    rank.until(Tokens)
    children(rank)[1].kill()
    # The two that are left lose it as well, and say so.
    assert re.match(r"rank [123] \(cpu\) was ended by SIGKILL", failure(rank))
    assert rank.process.wait(END_S) == 1


def test_no_rank_outlives_rank_0_even_one_that_hangs_in_loading(start: Start, model: Path) -> None:
    rank = start()
    rank.send(load(model))
    deadline = time.monotonic() + END_S
    while not (others := children(rank)) and time.monotonic() < deadline:
        time.sleep(0.02)
    rank.process.kill()
    assert all(is_gone(other) for other in others)


@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu,cpu", marks=pytest.mark.slow)])
def test_nodes_meet_at_a_port_and_answer_as_one_device(
    start: Start, model: Path, text: list[int], devices: str
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "qlocal.cli", "serve", str(model), "--nodes", "2", "--node-rank", "1"]
    node = subprocess.Popen(
        [*command, "--rendezvous", f"127.0.0.1:{port}", "--devices", devices, "--threads", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        rank = start()
        rank.send(load(model, Nodes(2, 0, "127.0.0.1", port), ["cpu"]))
        assert ready(rank).devices == ["cpu", *("node1/" + device for device in devices.split(","))]
        assert answer(rank) == text
        rank.socket.close()
        assert rank.process.wait(END_S) == 0
        said, _ = node.communicate(timeout=END_S)
        assert (node.returncode, said) == (0, f"node 1 of 2 computes for 127.0.0.1:{port}\n")
    finally:
        node.kill()
        node.communicate()


def test_a_node_with_another_model_is_refused_on_both_sides(start: Start, model: Path, tmp_path: Path) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", "qwen2")
    port, ranks = free_port(), (start(), start())
    for number, (rank, path) in enumerate(zip(ranks, (model, other), strict=True)):
        rank.send(load(path, Nodes(2, number, "127.0.0.1", port), ["cpu"]))
    assert failure(ranks[0]) == "node 1 has another model than model"
    assert failure(ranks[1]) == "node 0 refuses: node 1 has another model than model"


def test_shutdown_reaches_a_rank_that_waits_for_its_node_0(start: Start, model: Path) -> None:
    rank = start()
    rank.send(load(model, Nodes(2, 1, "127.0.0.1", free_port()), ["cpu"]))
    time.sleep(0.2)
    rank.socket.shutdown(socket.SHUT_RDWR)
    assert rank.process.wait(END_S) == 0
