"""Twenty mistakes that servers of this API have made, each shown not to be made here, in streams and in whole answers.

The rank echoes its prompt, so a message says what the model answers. Tool calls have more tests in test_tools.py,
what needs a model's own sampling in test_real_engine.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlocal.schema import EngineState
from tests.server.conftest import Running, Start, eventually
from tests.server.test_chat import URL, ask, events, text_of
from tests.server.test_tools import GET, PUT, TOOLS

both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture
def client(start: Start) -> Any:
    server = start("roomy")
    server.wait_for(EngineState.READY)
    with server.client() as client:
        yield client


def says(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def pieces(client: httpx.Client, body: dict[str, Any], stream: bool, index: int = 0) -> list[dict[str, Any]]:
    """Return the messages of one choice: all deltas of a stream, or the whole one."""
    if stream:
        chunks = events(client, body | {"stream": True})
        assert chunks[-1] == "[DONE]"
        return [c["delta"] for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == index]
    response = client.post(URL, json=body)
    assert response.status_code == 200, response.text
    return [response.json()["choices"][index]["message"]]


def finish(client: httpx.Client, body: dict[str, Any], stream: bool) -> Any:
    if stream:
        return events(client, body | {"stream": True})[-2]["choices"][0]["finish_reason"]
    return client.post(URL, json=body).json()["choices"][0]["finish_reason"]


def content(client: httpx.Client, body: dict[str, Any], stream: bool, index: int = 0) -> str:
    return "".join(piece.get("content") or "" for piece in pieces(client, body, stream, index))


def calls(client: httpx.Client, text: str, stream: bool) -> list[dict[str, Any]]:
    body = says(text, tools=TOOLS)
    return [call for piece in pieces(client, body, stream) for call in piece.get("tool_calls", [])]


def refused(client: httpx.Client, body: dict[str, Any], stream: bool) -> dict[str, Any]:
    response = client.post(URL, json=body | {"stream": stream})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@both
def test_01_every_call_has_its_own_index(client: httpx.Client, stream: bool) -> None:
    found = calls(client, GET + PUT + GET, stream)
    if stream:
        assert sorted({call["index"] for call in found}) == [0, 1, 2]
    assert [call["function"]["name"] for call in found if "name" in call["function"]] == ["get", "put", "get"]


@both
def test_02_a_call_s_id_is_in_its_first_delta_and_never_changes(client: httpx.Client, stream: bool) -> None:
    found = calls(client, GET + PUT, stream)
    if stream:
        seen: set[int] = set()
        for call in found:
            assert ("id" in call) == (call["index"] not in seen)
            seen.add(call["index"])
    assert len({call["id"] for call in found if "id" in call}) == 2


@both
def test_03_arguments_are_text(client: httpx.Client, stream: bool) -> None:
    found = calls(client, GET, stream)
    assert all(isinstance(call["function"]["arguments"], str) for call in found)
    assert json.loads("".join(call["function"]["arguments"] for call in found))["city"] == "Köln"


@both
def test_04_calls_end_with_tool_calls(client: httpx.Client, stream: bool) -> None:
    assert finish(client, says(f"I look. {GET}", tools=TOOLS), stream) == "tool_calls"
    assert finish(client, says("I know.", tools=TOOLS), stream) == "stop"


def test_05_all_chunks_of_a_stream_have_one_id(client: httpx.Client) -> None:
    chunks = events(client, says("hello", n=2, stream=True))[:-1]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert client.post(URL, json=says("hello")).json()["id"] != chunks[0]["id"]


def test_06_finish_reason_is_null_until_the_end(client: httpx.Client) -> None:
    choices = [chunk["choices"][0] for chunk in events(client, says("hello", stream=True))[:-1]]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_07_usage_is_the_last_chunk_and_only_when_asked_for(client: httpx.Client) -> None:
    asked = events(client, says("hello", stream=True, stream_options={"include_usage": True}))[:-1]
    assert asked[-1]["choices"] == [] and asked[-1]["usage"]["total_tokens"] == 11
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in asked[:-1])
    for options in (None, {"include_usage": False}):
        chunks = events(client, says("hello", stream=True, stream_options=options))[:-1]
        assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


@both
def test_08_errors_stand_under_error_as_json(client: httpx.Client, stream: bool) -> None:
    for body in (b"{", b"[]", b"\xff", b'{"messages": 3}', b'{"a": 1, "a": 2}', b'{"messages": NaN}', b""):
        response = client.post(URL, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400 and response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert refused(client, says("a", n=0), stream)["param"] == "n"


@both
def test_09_an_engine_error_is_never_a_clean_end(client: httpx.Client, stream: bool) -> None:
    if stream:
        chunks = events(client, says("ERROR", stream=True))
        assert "error" in chunks[-1] and "[DONE]" not in chunks
        assert not any(c.get("finish_reason") for chunk in chunks[:-1] for c in chunk["choices"])
    else:
        response = client.post(URL, json=says("ERROR"))
        assert response.status_code == 503 and response.headers["x-should-retry"] == "false"


@both
def test_10_no_character_is_cut(client: httpx.Client, stream: bool) -> None:
    text = "aé今😀👨‍👩‍👧\u2028\x85 e\u0301"
    found = pieces(client, says(text), stream)
    assert "".join(piece.get("content") or "" for piece in found) == text
    assert not any("\ufffd" in (piece.get("content") or "") for piece in found)


@both
def test_11_stop_strings_end_the_text_and_are_not_in_it(client: httpx.Client, stream: bool) -> None:
    for stop in ("END", ["x", "END", "D here"], ["é\n"]):
        text = "before é\nEND here" if stop != ["é\n"] else "before é\n"
        expected = "before " if stop == ["é\n"] else "before é\n"
        assert content(client, says(text, stop=stop), stream) == expected
        assert finish(client, says(text, stop=stop), stream) == "stop"
    assert content(client, says("EN", stop="END"), stream) == "EN"


@both
def test_12_who_hangs_up_leaves_nothing_running(server: Running, stream: bool) -> None:
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        if stream:
            with client.stream("POST", URL, json=ask("HANG", stream=True), timeout=0.3) as response:
                list(response.iter_lines())
        else:
            client.post(URL, json=ask("HANG"), timeout=0.3)
    eventually(lambda: server.service.engine.running == 0)


@both
def test_13_a_response_format_leaves_tools_callable(client: httpx.Client, stream: bool) -> None:
    body = says(GET, tools=TOOLS, response_format={"type": "json_object"})
    assert finish(client, body, stream) == "tool_calls"
    assert content(client, body | says('{"a": 1}'), stream) == '{"a": 1}'


@both
def test_14_a_schema_is_followed_or_refused_and_never_ignored(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("FAKE_RANK_LOG", str(tmp_path / "log"))
    schema: dict[str, Any] = {"type": "object", "properties": {"mark_of_the_schema": {}}}
    server = start()
    for strict in (True, False, None):
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "strict": strict, "schema": schema}}
        with server.client() as client:
            client.post(URL, json=ask("{}", response_format=wanted, stream=stream)).read()
            wanted["json_schema"]["schema"] = schema | {"uniqueItems": True}
            assert "uniqueItems" in refused(client, ask("{}", response_format=wanted), stream)["message"]
        (submit,) = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("Submit")]
        assert "mark_of_the_schema" in submit
        (tmp_path / "log").unlink()


@both
def test_15_lengths_of_zero_one_none_and_too_many(client: httpx.Client, stream: bool) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        assert refused(client, says("abc", **{field: 0}), stream)["param"] == field
        assert content(client, says("abc", **{field: 1}), stream) == "a"
        assert finish(client, says("abc", **{field: 1}), stream) == "length"
        for value in (None, 10**6):
            assert content(client, says("abc", **{field: value}), stream) == "abc"
            assert finish(client, says("abc", **{field: value}), stream) == "stop"


@both
def test_16_no_messages_is_a_400(client: httpx.Client, stream: bool) -> None:
    assert refused(client, {"messages": []}, stream)["param"] == "messages"
    assert refused(client, {}, stream)["param"] == "messages"
    assert refused(client, {"messages": [{"role": "user", "content": ""}]}, stream)["param"] == "messages"


@both
def test_17_logprobs_have_bytes_and_the_best_first(client: httpx.Client, stream: bool) -> None:
    body = says("é!", logprobs=True, top_logprobs=3)
    if stream:
        choices = [c for chunk in events(client, body | {"stream": True})[:-1] for c in chunk["choices"]]
    else:
        choices = client.post(URL, json=body).json()["choices"]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == "é!"
    for token in tokens:
        best = [top["logprob"] for top in token["top_logprobs"]]
        assert len(best) == 3 and best == sorted(best, reverse=True) and best[0] == token["logprob"]
    without = client.post(URL, json=says("a")).json()["choices"][0]
    assert without["logprobs"] is None


def test_18_a_seed_reaches_every_choice_and_none_alike(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK_LOG", str(tmp_path / "log"))
    with start().client() as client:
        for _ in range(2):
            client.post(URL, json=ask("a", n=3, seed=2**63 - 2))
    seeds = [part.split(",")[0] for part in (tmp_path / "log").read_text().split("seed=")[1:]]
    assert seeds[:3] == seeds[3:] == [str(2**63 - 2), str(2**63 - 1), "0"]


@both
def test_19_choices_are_complete_whatever_comes_first(client: httpx.Client, stream: bool) -> None:
    body = says("abcdef", n=8)
    if stream:
        chunks = events(client, body | {"stream": True})
        assert [text_of(chunks, i) for i in range(8)] == ["abcdef"] * 8
        ends = [c["index"] for chunk in chunks[:-1] for c in chunk["choices"] if c["finish_reason"]]
        assert sorted(ends) == list(range(8))
    else:
        choices = client.post(URL, json=body).json()["choices"]
        assert [(c["index"], c["message"]["content"]) for c in choices] == [(i, "abcdef") for i in range(8)]


@both
def test_20_a_prompt_over_the_context_is_refused_and_not_cut(client: httpx.Client, stream: bool) -> None:
    error = refused(client, says("x" * 4001), stream)
    assert error["code"] == "context_length_exceeded" and "4001" in error["message"] and "4000" in error["message"]
    assert refused(client, says("x" * 4000), stream)["code"] == "context_length_exceeded"
    assert content(client, says("x" * 3999), stream) == "x"
