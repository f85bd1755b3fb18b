"""The real process over a real socket pair."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlocal.engine.connection import Closed, Connection
from qlocal.protocol import (
    HEADER,
    Cancel,
    Failed,
    Finished,
    Load,
    Ping,
    Pong,
    Progress,
    Ready,
    Shutdown,
    Tokens,
    encode,
)
from tests import tiny
from tests.engine.rank_process import Rank
from tests.engine.running import VOCAB, request
from tests.memory_checkpoint import random_ids


@pytest.fixture
def rank() -> Iterator[Rank]:
    started = Rank()
    yield started
    started.socket.close()
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("rank") / "model")


def test_a_rank_loads_answers_and_ends_with_the_socket(rank: Rank, folder: Path) -> None:
    rank.send(Load(str(folder), ["cpu"], dtype="float32", threads=1))
    loading = rank.until(Ready)
    progress = [m for m in loading if isinstance(m, Progress)]
    assert progress[-1].done == progress[-1].total > 0
    ready = loading[-1]
    assert isinstance(ready, Ready) and ready.max_context == 512

    rank.send(request("a", random_ids(VOCAB, 9), 5))
    rank.send(request("b", random_ids(VOCAB, 400), 100))
    answers = rank.until(Finished)
    assert isinstance(answers[-1], Finished) and answers[-1].request_id == "a"
    assert sum(isinstance(m, Tokens) and m.request_id == "a" for m in answers) == 5
    rank.send(Cancel("b"))
    (cancelled,) = (m for m in rank.until(Finished) if isinstance(m, Finished))
    assert cancelled.reason == "cancelled"
    rank.send(Ping(7))
    pong = rank.until(Pong)[-1]
    assert isinstance(pong, Pong) and (pong.nonce, pong.running, pong.waiting) == (7, 0, 0)
    assert pong.cached_tokens is None
    rank.send(Ping(8, random_ids(VOCAB, 9)))
    told = rank.until(Pong)[-1]
    assert isinstance(told, Pong) and told.cached_tokens == 8, "all but the last, whose logits are needed"
    assert pong.free_blocks == pong.total_blocks
    rank.socket.close()
    assert rank.process.wait(timeout=30) == 0


def test_a_checkpoint_that_cannot_be_loaded_is_reported_in_one_sentence(rank: Rank, folder: Path) -> None:
    rank.send(Load(str(folder / "missing"), ["cpu"]))
    failed = rank.until(Failed)[-1]
    assert isinstance(failed, Failed) and "missing" in failed.message
    assert rank.process.wait(timeout=30) == 1
    assert rank.process.stderr is not None and b"Traceback" not in rank.process.stderr.read()


def test_shutdown_ends_the_process_in_the_middle_of_an_answer(rank: Rank, folder: Path) -> None:
    rank.send(Load(str(folder), ["cpu"], dtype="float32", threads=1))
    rank.until(Ready)
    rank.send(request("a", random_ids(VOCAB, 9), 500))
    rank.until(Tokens)
    rank.send(Shutdown())
    assert rank.process.wait(timeout=30) == 0


def test_ctrl_c_in_the_terminal_is_left_to_the_server(rank: Rank, folder: Path) -> None:
    rank.send(Load(str(folder), ["cpu"], dtype="float32", threads=1))
    rank.until(Ready)
    rank.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    rank.send(Ping(1))
    assert isinstance(rank.until(Pong)[-1], Pong)


def test_a_malformed_frame_is_an_error_not_a_traceback(rank: Rank, folder: Path) -> None:
    rank.send(Load(str(folder), ["cpu"], dtype="float32", threads=1))
    rank.until(Ready)
    rank.socket.sendall(HEADER.pack(3) + b"abc")
    failed = rank.until(Failed)[-1]
    assert isinstance(failed, Failed) and "malformed message" in failed.message
    assert rank.process.wait(timeout=30) == 1


def test_what_came_before_the_end_of_a_socket_is_read_before_the_end() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    theirs.sendall(encode(Ping(1)) + encode(Ping(2)) + encode(Ping(3))[:5])
    theirs.close()
    with ours:
        assert connection.receive(wait=True) == [Ping(1), Ping(2)]
        with pytest.raises(Closed):
            connection.receive(wait=True)
