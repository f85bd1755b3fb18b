"""The whole way with a real engine of a tiny model: HTTP, guard, rank process, sampling."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.identity import content_identity
from qlocal.guard import client as guard_client
from qlocal.tokenizer.known_templates import sha256
from tests.server.real import TOOL_TEMPLATE, RealServer, real_server
from tests.server.test_chat import URL, events
from tests.server.test_supervision import kill_rank, wait_for_other_rank
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("real")
    path = write_checkpoint(folder / "tiny")
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TOOL_TEMPLATE}))
    with real_server(folder, path) as running:
        yield running


@pytest.fixture
def client(server: RealServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        client.timeout = httpx.Timeout(60)
        yield client


def test_the_status_tells_of_a_template_that_nobody_knows(client: httpx.Client) -> None:
    template = client.get("/qlocal/status").json()["template"]
    assert template == {"sha256": sha256(TOOL_TEMPLATE), "known_as": None, "is_new": True}


def test_the_status_tells_what_made_the_answers(client: httpx.Client) -> None:
    status = client.get("/qlocal/status").json()
    assert status["weights"] == content_identity(open_checkpoint(Path(status["path"])).files)
    assert status["sampling"].keys() >= {"temperature", "top_p", "repetition_penalty"}
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1}
    plain, told = (client.post(URL, json=body | more).json() for more in ({}, status["sampling"]))
    assert plain["choices"] == told["choices"]


def ask(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "hello dog"}], "max_tokens": 300, "seed": 1, **fields}
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    chunks = events(client, body | {"stream": True})
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks[:-1]) == (
        choice["message"]["content"] or ""
    )
    return choice


SCHEMA = {
    "type": "object",
    "properties": {"dog": {"enum": ["lazy", "quick"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["dog", "count"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "walk", "strict": True, "parameters": SCHEMA}}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_schema_is_followed_to_its_end(client: httpx.Client, temperature: float) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    for seed in range(3):
        choice = ask(client, response_format=wanted, temperature=temperature, seed=seed)
        value = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop" and value["dog"] in ("lazy", "quick") and 1 <= value["count"] <= 9


def test_an_object_is_an_object_or_cut_by_length(client: httpx.Client) -> None:
    choice = ask(client, response_format={"type": "json_object"}, max_tokens=40)
    assert choice["message"]["content"].lstrip().startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "walk"}}])
def test_a_call_that_must_come_comes_with_arguments_of_its_schema(client: httpx.Client, choice: Any) -> None:
    answer = ask(client, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    (call,) = answer["message"]["tool_calls"]
    assert answer["finish_reason"] == "tool_calls" and call["function"]["name"] == "walk"
    assert json.loads(call["function"]["arguments"])["dog"] in ("lazy", "quick")


def test_a_format_beside_tools_gives_one_or_the_other(client: httpx.Client) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    answer = ask(client, tools=[TOOL], response_format=wanted)
    message = answer["message"]
    if message.get("tool_calls"):
        assert answer["finish_reason"] == "tool_calls"
    else:
        assert json.loads(message["content"])["dog"] in ("lazy", "quick")


def test_choices_with_and_without_a_schema_run_side_by_side(client: httpx.Client) -> None:
    free = {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 20, "seed": 7}
    alone = client.post(URL, json=free).json()["choices"][0]["message"]["content"]
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, "n": 4}
    answers: dict[int, Any] = {}

    def run(number: int) -> None:
        body = free | (wanted | {"max_tokens": 200} if number % 2 else {})
        answers[number] = client.post(URL, json=body).json()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, answer in answers.items():
        for choice in answer["choices"]:
            text = choice["message"]["content"]
            if number % 2:
                assert json.loads(text)["dog"] in ("lazy", "quick")
            else:
                assert text == alone, "the same seed gives the same text, alone or in company"


def test_an_answer_is_scored_as_it_was_written(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hello dog"}], "max_tokens": 12, "temperature": 0}
    answer = client.post(URL, json=body | {"logprobs": True, "top_logprobs": 3, "return_token_ids": True}).json()
    (choice,) = answer["choices"]
    score = {"messages": body["messages"], "answer_ids": choice["token_ids"], "top_logprobs": 3}
    scored = client.post("/qlocal/score", json=score).json()
    assert scored["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    told = choice["logprobs"]["content"]
    assert [t["id"] for t in scored["tokens"]] == choice["token_ids"] == [t["id"] for t in told]
    for written, read in zip(told, scored["tokens"], strict=True):
        # The prompt's kernels and those of single tokens round differently.
        assert read["logprob"] == pytest.approx(written["logprob"], abs=0.05)


def test_a_continued_answer_is_the_one_that_was_interrupted(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hello dog"}], "temperature": 0, "return_token_ids": True}
    whole = client.post(URL, json=body | {"max_tokens": 24}).json()["choices"][0]
    first = client.post(URL, json=body | {"max_tokens": 10}).json()["choices"][0]
    rest = client.post(URL, json=body | {"max_tokens": 14, "answer_start_ids": first["token_ids"]}).json()["choices"][0]
    assert first["token_ids"] + rest["token_ids"] == whole["token_ids"]


def test_health_is_a_real_token(client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ok"


def test_a_killed_engine_learns_the_vocabulary_again(server: RealServer, client: httpx.Client) -> None:
    wait_for_other_rank(server, kill_rank(server))
    test_a_schema_is_followed_to_its_end(client, 1.0)


def test_a_guard_that_hangs_costs_its_request_an_error_and_no_other(
    server: RealServer, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    assert client.post(URL, json=body).status_code == 200
    guard = psutil.Process(server.guard.pid)
    guard.suspend()
    with monkeypatch.context() as patch:
        patch.setattr(guard_client, "WAIT_PER_CPU", 0.5)
        refused = client.post(URL, json=body)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "template_error"
    assert "the chat template was not done within 1 s" in refused.json()["error"]["message"]
    assert not guard.is_running()
    assert client.post(URL, json=body).status_code == 200
