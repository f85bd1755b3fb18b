"""The machine's clock is set by days while the program works: `qlocal serve` with a real engine, and its guard."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlocal import launch
from qlocal.commands.waiting import wait_until_ready
from qlocal.launch import Address
from tests import tiny
from tests.preloading import compiled

DAY_S = 86_400
JUMPS = (DAY_S, -2 * DAY_S, 400 * DAY_S, 0)
IDLE_EXIT_S = 3600


class Clock:
    """How far the clock of the processes is off."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)

    def set(self, shift_s: int) -> None:
        struct.pack_into("<q", self._memory, 0, shift_s)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "shift")


@pytest.fixture
def address(tmp_path: Path, clock: Clock) -> Iterator[Address]:
    model = tiny.write_checkpoint(tmp_path / "model", overrides={"max_position_embeddings": 4096})
    socket = tmp_path / "run" / "s.sock"
    shim = compiled(Path(__file__).parent / "clock_shim.c", tmp_path)
    environment = os.environ | {
        "LD_PRELOAD": str(shim),
        "CLOCK_SHIFT": str(tmp_path / "shift"),
        "QLOCAL_SESSIONS": str(tmp_path / "sessions"),
    }
    options = ["--socket", str(socket), "--idle-exit", str(IDLE_EXIT_S), "--context", "4096", "--threads", "1"]
    command = [sys.executable, "-m", "qlocal.cli", "serve", str(model), *options]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = Address(socket=socket)
    deadline = time.monotonic() + 120
    while launch.fetch_status(found) is None:
        assert process.poll() is None and time.monotonic() < deadline, "the server has not started"
        time.sleep(0.05)
    wait_until_ready(found)
    yield found
    launch.stop(found)
    assert process.wait(60) == 0


def asked(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def test_answers_sessions_and_the_server_outlive_a_clock_that_jumps(address: Address, clock: Clock) -> None:
    prompt = asked("The lazy dog jumps over the quick brown fox. " * 20)
    ends: list[str] = []

    def stream() -> None:
        body = {**prompt, "stream": True, "max_tokens": 1500, "temperature": 0, "ignore_eos": True}
        with launch.connect(address) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            ends.extend(line for line in response.iter_lines() if '"finish_reason":"' in line or "DONE" in line)

    reader = threading.Thread(target=stream)
    reader.start()
    dates: list[int] = []
    with launch.connect(address, read_timeout_s=60) as client:
        for index, jump in enumerate(JUMPS):
            clock.set(jump)
            health = client.get("/health")
            assert health.status_code == 200, health.text
            answered = client.post("/v1/chat/completions", json={**asked(f"Is it {index}?"), "max_tokens": 2}).json()
            assert answered["choices"][0]["finish_reason"] == "length"
            dates.append(answered["created"] - int(time.time()))
            saved = client.post("/qlocal/sessions", json={"name": f"s{index}", **prompt})
            assert saved.status_code == 200, saved.text
            assert client.post(f"/qlocal/sessions/s{index}").status_code == 200
        reader.join(120)
        assert len(ends) == 2 and ends[1] == "data: [DONE]", "the answer has its proper end"
        assert [round(date / DAY_S) for date in dates] == [round(jump / DAY_S) for jump in JUMPS], "the clock did jump"
        clock.set(30 * DAY_S)
        assert client.get("/qlocal/status").json()["state"] == "ready", "an hour of quiet has not passed"
