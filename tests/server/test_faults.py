"""What goes wrong while an answer is under way: clients that leave, engines that die or hang, files that shrink."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlocal.launch import fetch_status
from qlocal.schema import EngineState
from qlocal.server.engine_client import RestartLimits
from tests.server.conftest import Running, Start, eventually
from tests.server.real import real_server
from tests.server.test_chat import URL, ask
from tests.server.test_supervision import wait_for_other_rank
from tests.tiny import write_checkpoint

CONTEXT = 16_384
SLOTS = 2


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("faults")
    path = write_checkpoint(folder / "tiny", overrides={"max_position_embeddings": CONTEXT})
    with real_server(folder, path, slots=SLOTS, prefill_chunk=256) as running:
        yield running


def usage(server: Running) -> dict[str, int]:
    """Return what the engine holds; on a machine that is busy it may not say so at once."""
    found: list[dict[str, int]] = []

    def is_told() -> bool:
        with server.client() as client:
            found.append(client.get("/health", timeout=60).json().get("engine") or {})
        return bool(found[-1])

    eventually(is_told)
    return found[-1]


def is_idle(server: Running) -> bool:
    found = usage(server)
    return found["running"] == found["waiting"] == 0 and found["free_blocks"] == found["total_blocks"]


def dial(server: Running, **fields: Any) -> socket.socket:
    """Ask a question on a connection that can be dropped at any moment."""
    body = json.dumps({"messages": [{"role": "user", "content": "dog"}], "logit_bias": NEVER_ENDING, **fields}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(str(server.address.socket))
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


NEVER_ENDING = {str(token_id): -100 for token_id in range(295, 303)}
"""Whatever ends an answer is not drawn."""


def read_until(connection: socket.socket, text: bytes) -> None:
    data = b""
    while text not in data:
        chunk = connection.recv(4096)
        assert chunk, data
        data += chunk


LONG = [{"role": "user", "content": "the lazy dog " * 1500}]
SHORT = [{"role": "user", "content": "dog"}]


@pytest.mark.parametrize("state", ["queued", "prefill", "decode", "not streamed"])
def test_who_leaves_gives_back_slot_and_blocks(real: Running, state: str) -> None:
    assert is_idle(real)
    others = [dial(real, stream=True, max_tokens=8000) for _ in range(SLOTS if state == "queued" else 0)]
    for other in others:
        read_until(other, b'"content":"')
    if state == "queued":
        leaving = dial(real, stream=True, max_tokens=8000)
        eventually(lambda: usage(real)["waiting"] == 1)
    elif state == "prefill":
        leaving = dial(real, messages=LONG, stream=True)
        read_until(leaving, b": qlocal {")
    elif state == "decode":
        leaving = dial(real, stream=True, max_tokens=8000)
        read_until(leaving, b'"content":"')
    else:
        leaving = dial(real, max_tokens=8000)
        eventually(lambda: usage(real)["running"] == 1)
    leaving.close()
    eventually(lambda: usage(real)["waiting"] == 0 and real.service.engine.running <= len(others) + 1)
    for other in others:
        other.close()
    eventually(lambda: is_idle(real), lambda: str(usage(real)))


def test_a_hundred_clients_that_leave_at_any_moment_leave_nothing(real: Running) -> None:
    dice = random.Random(1)

    def one(number: int) -> None:
        fields = {"stream": number % 2 == 0, "max_tokens": 400, "n": 1 + number % 3}
        with dial(real, **fields, messages=SHORT if number % 5 else LONG):
            time.sleep(dice.random() * 0.1)

    for start in range(0, 100, 20):
        threads = [threading.Thread(target=one, args=(start + k,)) for k in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    eventually(lambda: is_idle(real), lambda: str(usage(real)))
    assert real.service.engine.running == 0


@pytest.mark.slow
def test_a_model_file_that_shrinks_is_an_error_and_the_server_lives(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "tiny", overrides={"max_position_embeddings": CONTEXT})
    file = path / "model.safetensors"
    content = file.read_bytes()
    with real_server(tmp_path, path) as server:
        with dial(server, stream=True, max_tokens=8000) as connection:
            read_until(connection, b'"content":"')
            os.truncate(file, 4096)
            rest = b""
            while chunk := connection.recv(65536):
                rest += chunk
        assert b'"error"' in rest and b"SIGBUS" in rest and b"[DONE]" not in rest
        assert f"{file} was {len(content):,} bytes when it was loaded, and is 4,096 now".encode() in rest
        server.wait_for(EngineState.FAILED, 120.0)
        status = fetch_status(server.address)
        assert status is not None and "model.safetensors" in (status.error or "")
        file.write_bytes(content)
        with server.client() as client:
            assert client.post(URL, json=ask("a")).status_code in (404, 503)
            assert client.post("/qlocal/load", json={"model": str(path)}).status_code == 202
            server.wait_for(EngineState.READY, 120.0)
            answer = client.post(URL, json={"messages": [{"role": "user", "content": "a"}], "max_tokens": 2})
            assert answer.status_code == 200


def kill_at_random_tokens(server: Running, times: int) -> None:
    """Kill the engine while it answers; the client must see an error every time, and the next question an answer."""
    dice = random.Random(times)
    seen = 0
    for _ in range(times):
        pid = server.service.engine.pid
        assert pid is not None
        lines: list[str] = []
        last = 2 * dice.randrange(1, 12)
        with server.client() as client, client.stream("POST", URL, json=ask("SLOW" * 20, stream=True)) as response:
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) == last:
                    os.kill(pid, signal.SIGKILL)
        errors = [json.loads(line[6:]) for line in lines if line.startswith("data: {") and '"error"' in line]
        assert "data: [DONE]" not in lines and not any('"finish_reason":"' in line for line in lines), lines[-3:]
        seen += "SIGKILL" in errors[-1]["error"]["message"]
        wait_for_other_rank(server, pid)
        with server.client() as client:
            assert client.post(URL, json=ask("next")).json()["choices"][0]["message"]["content"] == "next"
    assert seen == times and server.service.engine.running == 0


def test_an_engine_killed_at_random_tokens_is_seen_by_the_client(start: Start) -> None:
    kill_at_random_tokens(start(limits=RestartLimits(count=100)), 6)


@pytest.mark.slow
def test_an_engine_killed_at_200_random_tokens_is_seen_200_times(start: Start) -> None:
    kill_at_random_tokens(start(limits=RestartLimits(count=1000)), 200)


def test_a_hung_engine_is_given_more_time_while_it_reads(start: Start) -> None:
    server = start(ping_s=0.05, stall_s=0.2, reading_stall_s=60.0)
    pid = server.service.engine.pid
    assert pid is not None
    client = server.service.engine
    client._unread.add("a prompt that is being read")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)
    assert client.pid == pid and client.running == 0
    client._unread.clear()
    wait_for_other_rank(server, pid)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL, signal.SIGSEGV])
def test_an_engine_that_hangs_or_dies_ends_every_answer_with_an_error(start: Start, how: signal.Signals) -> None:
    server = start(ping_s=0.1, stall_s=0.5, reading_stall_s=1.0)
    pid = server.service.engine.pid
    assert pid is not None
    ends: list[tuple[int, str]] = []

    def ask_for(stream: bool, choices: int) -> None:
        with server.client() as client:
            response = client.post(URL, json=ask("SLOW HANG", stream=stream, n=choices), timeout=60)
            ends.append((response.status_code, response.text))

    clients = [threading.Thread(target=ask_for, args=(stream, n)) for stream in (True, False) for n in (1, 2)]
    for client in clients:
        client.start()
    eventually(lambda: server.service.engine.running == 6)
    os.kill(pid, how)
    for client in clients:
        client.join(60)
    assert len(ends) == 4, "no client waits on"
    said = "no sign of life" if how is signal.SIGSTOP else how.name
    for status, text in ends:
        assert said in text and '"finish_reason":"' not in text and "[DONE]" not in text
        assert status == (200 if "data: " in text else 503)
    wait_for_other_rank(server, pid)
    with server.client() as fresh:
        assert fresh.post(URL, json=ask("next")).json()["choices"][0]["message"]["content"] == "next"


def test_no_deadline_depends_on_the_time_of_day() -> None:
    """Clocks of the day jump; they may name a moment in an answer, and decide nothing."""
    root = Path(__file__).parents[2] / "qlocal"
    found = set()
    for path in [*(root / "server").rglob("*.py"), *(root / "guard").rglob("*.py"), root / "launch.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("time.time", "datetime.now", "time.localtime"):
                found.add(path.name)
    assert found == {"service.py", "shapes.py", "templates.py", "references.py"}, (
        "`created` of answers, `strftime_now` of templates, which reference is the oldest"
    )
