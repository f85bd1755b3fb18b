"""What loading would take, told before it; and how many answers are in the queue."""

from __future__ import annotations

import threading
from pathlib import Path

from qlocal.config import EngineOptions
from qlocal.launch import fetch_status
from qlocal.server.preflight import shown_plan
from qlocal.server.service import load_message
from tests import tiny
from tests.server.conftest import Running, eventually
from tests.server.test_chat import URL


def test_a_plan_is_shown_with_its_table_and_as_if_nothing_were_loaded(tmp_path: Path) -> None:
    load = load_message(tiny.write_checkpoint(tmp_path / "m"), EngineOptions(max_context=512))
    told = shown_plan(load, {})
    assert told["plan"]["max_context"] == 512
    assert told["table"][0].startswith("device") and told["table"][1].startswith("cpu")
    assert any("512 tokens" in note for note in told["notes"])
    more = shown_plan(load, {"cpu": 7 << 40})["plan"]["devices"][0]["free_bytes"]
    assert more == 7 << 40


def test_what_cannot_be_planned_is_refused_and_the_loaded_model_stays(server: Running) -> None:
    with server.client() as client:
        unknown = client.post("/qlocal/plan", json={"model": "unknown"})
        nothing = client.post("/qlocal/plan", json={"model": "no-checkpoint-there"})
    assert unknown.status_code == 404 and unknown.json()["error"]["param"] == "model"
    assert 400 <= nothing.status_code < 500
    status = fetch_status(server.address)
    assert status is not None and status.state.value == "ready" and status.model == "echo"


def test_the_status_counts_the_answers_in_the_queue(server: Running) -> None:
    def in_flight() -> int:
        status = fetch_status(server.address)
        assert status is not None
        return status.in_flight

    def ask() -> None:
        with server.client() as client:
            client.post(URL, json={"messages": [{"role": "user", "content": "SLOW"}], "n": 2})

    assert in_flight() == 0
    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: in_flight() == 2)
    thread.join()
    eventually(lambda: in_flight() == 0)
