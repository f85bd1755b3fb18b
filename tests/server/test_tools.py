"""Tool calls, streamed and not. The rank echoes its prompt, so a message says what the model answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlocal.schema import EngineState
from tests.server.conftest import ByteCodec, Running, Start
from tests.server.test_chat import URL, events


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}, **function}}


TOOLS = [tool("get", description="Gets it."), tool("put")]


def tagged(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


GET = tagged("get", '{"city": "Köln", "deep": [{"a": "}"}]}')
PUT = tagged("put", "{}")


@pytest.fixture
def roomy(start: Start) -> Running:
    return ready(start("roomy"))


def ready(server: Running) -> Running:
    server.wait_for(EngineState.READY)
    return server


def test_tools_are_counted_as_they_are_read(roomy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ByteCodec.encode_chat

    def with_tools(codec: ByteCodec, messages: Any, tools: Any = None) -> list[int]:
        return [*plain(codec, messages), *range(len(tools or []))]

    monkeypatch.setattr(ByteCodec, "encode_chat", with_tools)
    with roomy.client() as client:
        body = says("hello")
        read = client.post(URL, json=body | {"max_tokens": 1}).json()["usage"]["prompt_tokens"]
        counted = client.post("/qlocal/count", json=body).json()["prompt_tokens"]
        without = client.post("/qlocal/count", json={"messages": body["messages"]}).json()["prompt_tokens"]
    assert counted == read > without


def says(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "tools": TOOLS, **fields}


def whole(client: httpx.Client, body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return message and finish_reason, ids of calls left out; streamed and whole answers are asked to be the same."""
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    message = choice["message"]
    chunks = [chunk["choices"][0] for chunk in events(client, body | {"stream": True})[:-1]]
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]
    assert "".join(c["delta"].get("content") or "" for c in chunks) == (message["content"] or "")
    assert streamed_calls(chunks) == [call["function"] for call in message.get("tool_calls", [])]
    return message, choice["finish_reason"]


def streamed_calls(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    ids: dict[int, str] = {}
    for chunk in chunks:
        told = [delta["index"] for delta in chunk["delta"].get("tool_calls", [])]
        assert len(set(told)) == len(told), "clients take two pieces of one call in one chunk for two calls"
    for delta in (d for chunk in chunks for d in chunk["delta"].get("tool_calls", [])):
        assert isinstance(delta["function"]["arguments"], str)
        if delta["index"] not in calls:
            ids[delta["index"]] = delta["id"]
            assert delta["type"] == "function" and delta["id"].startswith("call_")
            calls[delta["index"]] = dict(delta["function"])
        else:
            assert delta.keys() == {"index", "function"} and delta["function"].keys() == {"arguments"}
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert list(calls) == list(range(len(calls))) and len(set(ids.values())) == len(ids)
    return list(calls.values())


def test_a_call_is_told_apart_from_text(roomy: Running) -> None:
    with roomy.client() as client:
        message, reason = whole(client, says(f"I look.\n{GET}"))
    (call,) = message["tool_calls"]
    assert message["content"] == "I look." and reason == "tool_calls" and call["type"] == "function"
    assert call["function"]["name"] == "get"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln", "deep": [{"a": "}"}]}


def test_several_calls_have_an_index_and_an_id_each(roomy: Running) -> None:
    with roomy.client() as client:
        message, reason = whole(client, says(f"{GET}\n{PUT}\n{GET}"))
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get", "put", "get"]
    assert len({call["id"] for call in message["tool_calls"]}) == 3
    assert message["content"] is None and reason == "tool_calls"


def test_what_is_known_at_once_is_one_delta(roomy: Running) -> None:
    with roomy.client() as client:
        message, _ = whole(client, says('<tool_call>{"arguments": {"a": 1}, "name": "put"}</tool_call>'))
    assert message["tool_calls"][0]["function"] == {"name": "put", "arguments": '{"a": 1}'}


def test_one_call_is_enough_without_parallel_calls(roomy: Running) -> None:
    with roomy.client() as client:
        message, reason = whole(client, says(f"{PUT}\n{GET} and more", parallel_tool_calls=False))
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["put"]
    assert reason == "tool_calls" and message["content"] is None
    assert roomy.service.engine.running == 0


def test_a_bare_call_is_one_of_the_llama_format(start: Start) -> None:
    with ready(start("roomy-llama")).client() as client:
        message, reason = whole(client, says('{"name": "get", "parameters": {"a": 1}}'))
        assert message["tool_calls"][0]["function"] == {"name": "get", "arguments": '{"a": 1}'}
        assert reason == "tool_calls"
        message, reason = whole(client, says('{"name": "other", "parameters": {"a": 1}}'))
        assert message["content"].startswith('{"name"') and reason == "stop"


def test_text_stays_text_when_nothing_is_called(roomy: Running) -> None:
    with roomy.client() as client:
        message, reason = whole(client, says("It is 3 < 4 <tool"))
        assert message["content"] == "It is 3 < 4 <tool" and "tool_calls" not in message and reason == "stop"
        message, _ = whole(client, says(GET, tool_choice="none"))
        assert message["content"] == GET


def test_an_answer_that_is_cut_in_a_call_says_length(roomy: Running) -> None:
    with roomy.client() as client:
        message, reason = whole(client, says(GET, max_tokens=60))
    assert reason == "length" and message["tool_calls"][0]["function"]["arguments"].startswith('{"city"')


def test_each_choice_has_its_own_calls(roomy: Running) -> None:
    with roomy.client() as client:
        chunks = events(client, says(GET, n=3, stream=True))
    choices = [c for chunk in chunks[:-1] for c in chunk["choices"]]
    for index in range(3):
        mine = [c for c in choices if c["index"] == index]
        assert len(streamed_calls(mine)) == 1 and mine[-1]["finish_reason"] == "tool_calls"


def test_results_of_tools_are_read_back(roomy: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "b"},
    ]
    with roomy.client() as client:
        answer = client.post(URL, json={"messages": messages, "tools": TOOLS}).json()
    assert answer["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("a b")]}, "tools.0.function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools"),
        ({"tools": [{"type": "web"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [tool("a")] * 129}, "tools"),
        ({"tools": "a"}, "tools"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("a", parameters={"type": "object", "not": {}}, strict=True)]}, "tools.a.parameters"),
        ({"tools": [tool("a", parameters={"type": "frog"}, strict=True)]}, "tools.a.parameters"),
        ({"functions": [{"name": "a"}]}, "functions"),
    ],
)
def test_wrong_tools_are_refused_by_name(roomy: Running, fields: dict[str, Any], param: str) -> None:
    with roomy.client() as client:
        response = client.post(URL, json=says("a") | fields)
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param), response.text


def test_a_model_without_tools_says_so(start: Start) -> None:
    with ready(start("roomy-plain")).client() as client:
        response = client.post(URL, json=says("a"))
        assert response.status_code == 400 and response.json()["error"]["code"] == "tools_unsupported"
        assert client.post(URL, json=says("a", tools=[])).status_code == 200
        assert client.post(URL, json=says("a", tool_choice="none")).status_code == 200


STRICT = tool("get", strict=True, parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
NAMED = {"type": "function", "function": {"name": "put"}}
OBJECT = {"type": "json_object"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["grammar=None"]),
        ({"tool_choice": "none", "response_format": OBJECT}, ["start: %json"]),
        ({"tool_choice": "required"}, ["<tool_call>", "get", "put", "more: ("]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ["get", 'more: ""']),
        ({"tool_choice": NAMED}, ["put"]),
        ({"tools": [STRICT]}, ["TEXT", "integer"]),
        ({"response_format": OBJECT}, ["call more | value", "get"]),
        # Only a strict function promises its schema; the others are held to what can be held.
        ({"tools": [tool("get", parameters={"not": {}})], "tool_choice": "required"}, ["object"]),
    ],
)
@pytest.mark.parametrize("model", ["roomy", "roomy-llama"])
def test_the_engine_is_told_what_must_be_called(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, fields: dict[str, Any], words: list[str]
) -> None:
    monkeypatch.setenv("FAKE_RANK_LOG", str(tmp_path / "log"))
    with ready(start(model)).client() as client:
        assert client.post(URL, json=says("a") | fields).status_code == 200
    log = (tmp_path / "log").read_text()
    submit = next(line for line in log.splitlines() if line.startswith("Submit"))
    wanted = words if model == "roomy" else [word for word in words if word != "<tool_call>"]
    assert all(word in submit for word in wanted), submit
    assert ("Vocabulary" in log) == ("grammar=None" not in submit)
    if fields.get("tool_choice") == NAMED:
        assert "get" not in submit
