from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from qlocal.launch import fetch_status
from qlocal.schema import EngineState
from qlocal.server.engine_client import RestartLimits
from tests.server.conftest import Running, Start, eventually
from tests.server.test_chat import URL, ask, events


def kill_rank(server: Running) -> int:
    pid = server.service.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_for_other_rank(server: Running, pid: int) -> None:
    eventually(lambda: server.service.engine.pid not in (None, pid))
    server.wait_for(EngineState.READY, 120.0)


@pytest.mark.parametrize("stream", [True, False])
def test_dead_rank_ends_the_answer_with_an_error_and_is_started_again(server: Running, stream: bool) -> None:
    pid = server.service.engine.pid
    assert pid is not None
    with server.client() as client:
        if stream:
            assert "exit code 9" in events(client, ask("DIE", stream=True))[-1]["error"]["message"]
        else:
            assert client.post(URL, json=ask("DIE")).status_code == 503
        wait_for_other_rank(server, pid)
        assert client.post(URL, json=ask("hello")).status_code == 200


def test_killed_rank_is_explained_while_an_answer_streams(server: Running) -> None:
    with server.client() as client, client.stream("POST", URL, json=ask("SLOW" * 10, stream=True)) as response:
        lines = response.iter_lines()
        next(lines)
        pid = kill_rank(server)
        rest = "".join(lines)
    assert "SIGKILL" in rest and "out of memory" in rest and "[DONE]" not in rest
    wait_for_other_rank(server, pid)


def test_rank_that_keeps_dying_is_given_up_with_the_reason(server: Running) -> None:
    wait_for_other_rank(server, kill_rank(server))
    kill_rank(server)
    server.wait_for(EngineState.FAILED)
    status = fetch_status(server.address)
    assert status is not None and "SIGKILL" in (status.error or "")
    with server.client() as client:
        response = client.post(URL, json=ask("hello"))
        assert response.status_code == 503 and response.headers["x-should-retry"] == "false"


def test_malformed_frame_ends_the_rank_and_not_the_server(server: Running) -> None:
    pid = server.service.engine.pid
    assert pid is not None
    with server.client() as client:
        response = client.post(URL, json=ask("GARBAGE"))
        assert response.status_code == 503 and "frame" in response.json()["error"]["message"]
        wait_for_other_rank(server, pid)
        assert client.post(URL, json=ask("hello")).status_code == 200


def test_silent_rank_is_killed_and_started_again(start: Start) -> None:
    server = start(ping_s=0.1, stall_s=0.4)
    pid = server.service.engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    wait_for_other_rank(server, pid)


def test_rank_that_cannot_be_started_is_explained(start: Start) -> None:
    server = start("other", command=("/nonexistent/python",))
    server.wait_for(EngineState.FAILED)
    status = fetch_status(server.address)
    assert status is not None and "could not be started" in (status.error or "")


def test_rank_is_what_the_kernel_kills_first(server: Running) -> None:
    assert Path(f"/proc/{server.service.engine.pid}/oom_score_adj").read_text().strip() == "500"


def test_no_rank_outlives_its_server(start: Start) -> None:
    server = start()
    pid = server.service.engine.pid
    with server.client() as client:
        client.post("/qlocal/stop")
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_many_clients_at_once_get_their_own_answers(server: Running) -> None:
    answers: dict[int, Any] = {}

    def one(number: int) -> None:
        with server.client() as client:
            answers[number] = client.post(URL, json=ask(f"number {number}")).json()

    threads = [threading.Thread(target=one, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = {n: a["choices"][0]["message"]["content"] for n, a in answers.items()}
    assert texts == {n: f"number {n}" for n in range(16)}


def test_restarts_are_allowed_again_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limits = RestartLimits(count=2, window_s=10)
    assert [limits.allow(), limits.allow(), limits.allow()] == [True, True, False]
    now = 11.0
    assert limits.allow()


def test_server_imports_no_torch() -> None:
    import subprocess

    modules = "qlocal.server.serve, qlocal.launch, qlocal.cli, qlocal.hub, qlocal.doctor, qlocal.catalog"
    code = f"import sys, {modules}; print([m for m in ('torch', 'triton', 'textual') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
