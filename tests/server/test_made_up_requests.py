"""Requests made up from openapi.json, valid and invalid, for every route: no 5xx, no dead engine, documented answers.

A few examples of each by default; `make requests` makes EXAMPLES of each, 1,000 where nothing is said.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from qlocal.schema import EngineState
from qlocal.server.openapi import document
from tests.server.conftest import TOKEN, Running, Start, eventually
from tests.server.contract import check_response

FEW = 12
MANY = int(os.environ.get("EXAMPLES", "1000"))
FEW_LOADS = 3
"""Each of them starts a process."""
LEFT_OUT = {"/qlocal/stop", "/qlocal/variants"}
"""One ends the server, whatever is asked for; one takes nothing, and opens the checkpoint, which an echo has not."""
ENDLESS = {"/qlocal/events"}
OPERATIONS = [
    (path, method) for path, methods in document()["paths"].items() if path not in LEFT_OUT for method in methods
]
MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
MODE = pytest.mark.parametrize("mode", MODES, ids=["valid", "invalid"])


@pytest.fixture
def server(start: Start) -> Running:
    return start(tcp=True)


def send(server: Running, case: Any) -> httpx.Response:
    """Send a made-up request with the token and hold the answer against the document."""
    path, token = case.operation.path, {"Authorization": f"Bearer {TOKEN}"}
    method, url = case.operation.method.upper(), f"{server.address.url}{path}"
    if path in ENDLESS:
        return first_event(case.as_transport_kwargs(base_url=server.address.url, headers=token))
    sent = case.call(base_url=server.address.url, headers=token, timeout=60)
    kind = {"content-type": sent.headers.get("content-type", [""])[0]}
    response = httpx.Response(sent.status_code, headers=kind, content=sent.content, request=httpx.Request(method, url))
    check_response(response)
    return response


def first_event(request: dict[str, Any]) -> httpx.Response:
    """Send a request whose answer never ends, and leave after its beginning."""
    with requests.request(**request, stream=True, timeout=60) as sent:
        begun = next(sent.iter_content(None))
        assert sent.status_code != 200 or begun.startswith((b"event:", b"data:", b":")), begun[:200]
        return httpx.Response(sent.status_code, content=begun)


def make_up(server: Running, path: str, method: str, mode: GenerationMode, examples: int) -> int:
    """Send so many made-up requests of one route; return how many were not refused."""
    operation = schemathesis.openapi.from_dict(document())[path][method]
    loads = path == "/qlocal/load"
    answered = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        nonlocal answered
        response = send(server, case)
        answered += response.status_code < 400
        assert response.status_code < 500, (response.status_code, response.text[:300])
        if loads and response.status_code == 202:
            eventually(lambda: server.service.board.status.state in (EngineState.READY, EngineState.FAILED))

    run()
    return answered


def is_alive(server: Running) -> bool:
    with server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "alive"})
    return answer.status_code == 200 and server.service.engine.running == 0


@MODE
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_a_few_made_up_requests_are_answered_or_refused(
    server: Running, path: str, method: str, mode: GenerationMode
) -> None:
    check(server, path, method, mode, FEW_LOADS if path == "/qlocal/load" else FEW)


@pytest.mark.slow
@MODE
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_many_made_up_requests_are_answered_or_refused(
    server: Running, path: str, method: str, mode: GenerationMode
) -> None:
    check(server, path, method, mode, MANY)


def check(server: Running, path: str, method: str, mode: GenerationMode, examples: int) -> None:
    pid = server.service.engine.pid
    operation = document()["paths"][path][method]
    if mode is GenerationMode.NEGATIVE and "requestBody" not in operation:
        return  # nothing in it can be wrong
    make_up(server, path, method, mode, examples)
    if path == "/qlocal/load":
        with server.client() as client:
            client.post("/qlocal/load", json={"model": "echo"})
        server.wait_for(EngineState.READY)
    else:
        assert server.service.engine.pid == pid
    assert is_alive(server)
