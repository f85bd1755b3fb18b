from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest

from qlocal.launch import fetch_status, stop
from qlocal.schema import EngineState
from tests.server.conftest import Running, Start


def test_models_carry_the_context_under_both_names(server: Running) -> None:
    with server.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert model["id"] == "echo" and model["context_length"] == model["max_model_len"] == 200
        assert client.get("/v1/models/echo").json() == model
        assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/audio", 404),
        ("GET", "/v1/embeddings", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/completions", 405),
    ],
)
def test_every_error_stands_under_error(server: Running, method: str, path: str, status: int) -> None:
    with server.client() as client:
        response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_unknown_model_is_a_404_that_names_the_loaded_one(server: Running) -> None:
    with server.client() as client:
        response = client.post("/v1/chat/completions", json={"model": "x", "messages": [HI]})
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert "'echo'" in response.json()["error"]["message"]


HI = {"role": "user", "content": "hi"}


def test_status_says_what_is_loaded(server: Running) -> None:
    with server.client() as client:
        status = client.get("/qlocal/status").json()
    assert status["state"] == "ready" and status["model"] == "echo" and status["pid"] == os.getpid()
    assert status["max_context"] == 200 and status["error"] is None and status["progress"] is None


def test_nothing_loaded_lists_nothing_and_refuses_with_503(start: Start) -> None:
    server = start(None)
    with server.client() as client:
        assert client.get("/v1/models").json() == {"object": "list", "data": []}
        response = client.post("/v1/chat/completions", json={"messages": [HI]})
        assert response.status_code == 503 and response.headers["x-should-retry"] == "false"
        assert client.get("/health").status_code == 503


def test_loading_is_told_as_events(start: Start) -> None:
    server = start(None)
    seen: list[dict[str, Any]] = []
    with server.client() as client, client.stream("GET", "/qlocal/events") as response:
        for line in response.iter_lines():
            if not line:
                continue
            seen.append(json.loads(line.removeprefix("data: ")))
            if len(seen) == 1:
                with server.client() as other:
                    loaded = other.post("/qlocal/load", json={"model": "slow", "max_context": 64})
                    assert loaded.status_code == 202 and loaded.json()["state"] == "loading"
                    waiting = other.post("/v1/chat/completions", json={"messages": [HI]})
                    assert waiting.status_code == 503 and waiting.headers["retry-after"] == "5"
            if seen[-1]["state"] == "ready":
                break
    states = [status["state"] for status in seen]
    assert states[0] == "empty" and states[-1] == "ready" and set(states[1:-1]) == {"loading"}
    assert {"stage": "weights", "done": 1, "total": 2, "layers": {"cpu": [3, 4]}} in [
        status["progress"] for status in seen
    ]
    assert seen[-1]["max_context"] == 64


def test_another_model_replaces_the_first(server: Running) -> None:
    with server.client() as client:
        client.post("/qlocal/load", json={"model": "second"})
        server.wait_for(EngineState.READY)
        assert client.get("/v1/models").json()["data"][0]["id"] == "second"
        assert client.post("/v1/chat/completions", json={"messages": [HI]}).status_code == 200


def test_a_model_that_is_loaded_again_keeps_the_options_that_are_not_named(server: Running) -> None:
    def loaded(**body: Any) -> int | None:
        with server.client() as client:
            assert client.post("/qlocal/load", json=body).status_code == 202
        server.wait_for(EngineState.READY)
        return server.service.board.status.max_context

    whole = server.service.board.status.max_context
    assert loaded(model="echo", max_context=64) == 64 != whole
    assert loaded(model="echo", kv="q8") == 64
    assert loaded(model="echo", max_context=96) == 96
    assert loaded(model="echo") == 96
    assert loaded(model="echo", max_context=None) == whole
    assert loaded(model="second", max_context=64) == 64
    assert loaded(model="echo", kv="q8") == whole, "what another model had is not this one's"


def test_a_field_that_nobody_knows_does_not_hinder_loading(server: Running) -> None:
    with server.client() as client:
        body = {"model": "echo", "max_context": 64, "unheard_of": 1}
        assert client.post("/qlocal/load", json=body).status_code == 202
    server.wait_for(EngineState.READY)
    assert server.service.board.status.max_context == 64


def test_unknown_model_cannot_be_loaded_and_the_old_one_stays(server: Running) -> None:
    with server.client() as client:
        response = client.post("/qlocal/load", json={"model": "unknown"})
        assert response.status_code == 404 and "Did you mean" in response.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json={"messages": [HI]}).status_code == 200


@pytest.mark.parametrize(
    ("model", "words"), [("headless", "config.json is missing"), ("broken", "tensor 'x' has NaN. Fetch it again.")]
)
def test_model_that_cannot_be_loaded_is_explained_and_another_one_works(start: Start, model: str, words: str) -> None:
    server = start(model)
    server.wait_for(EngineState.FAILED)
    status = fetch_status(server.address)
    assert status is not None and status.error is not None and words in status.error
    with server.client() as client:
        client.post("/qlocal/load", json={"model": "echo"})
        server.wait_for(EngineState.READY)
        assert client.post("/v1/chat/completions", json={"messages": [HI]}).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"model": ""}, {"model": "echo", "devices": ["tpu"]}, {"model": "e", "max_context": 0}]
)
def test_wrong_load_request_is_refused(server: Running, body: dict[str, Any]) -> None:
    with server.client() as client:
        assert client.post("/qlocal/load", json=body).status_code == 400
        assert client.get("/qlocal/status").json()["state"] == "ready"


def test_mistake_in_our_own_code_does_not_leave_the_client_waiting(start: Start) -> None:
    server = start("buggy")
    server.wait_for(EngineState.FAILED)
    status = fetch_status(server.address)
    assert status is not None and "internal error" in (status.error or "")


def test_two_loads_at_once_end_with_one_model(server: Running) -> None:
    def load(model: str) -> None:
        with server.client() as client:
            assert client.post("/qlocal/load", json={"model": model}).status_code == 202

    threads = [threading.Thread(target=load, args=(f"m{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.wait_for(EngineState.READY)
    status = fetch_status(server.address)
    with server.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
    assert status is not None and model["id"] == status.model


def test_count_gives_prompt_and_context(server: Running) -> None:
    with server.client() as client:
        assert client.post("/qlocal/count", json={"messages": [HI]}).json() == {
            "prompt_tokens": 2,
            "max_context": 200,
            "cached_tokens": 1,
        }


def test_health_is_a_real_token(server: Running) -> None:
    with server.client() as client:
        engine = {"running": 0, "waiting": 0, "free_blocks": 1, "total_blocks": 1}
        assert client.get("/health").json() == {"status": "ok", "model": "echo", "engine": engine}


def test_stop_ends_the_server_even_with_open_streams(server: Running) -> None:
    with server.client() as client, client.stream("GET", "/qlocal/events") as response:
        next(response.iter_lines())
        began = time.monotonic()
        assert stop(server.address)
        assert time.monotonic() - began < 10
    assert fetch_status(server.address) is None
