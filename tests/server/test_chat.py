from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import APIError, BadRequestError, NotFoundError, OpenAI

from tests.server.conftest import TOKEN, Running, Start, eventually
from tests.server.contract import check_event

URL = "/v1/chat/completions"


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **fields}


def events(client: httpx.Client, body: dict[str, Any], url: str = URL) -> list[Any]:
    """Return the events of a stream, the last one `[DONE]` as text."""
    with client.stream("POST", url, json=body) as response:
        assert response.status_code == 200, response.read()
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    found = [line if line == "[DONE]" else json.loads(line) for line in lines]
    for event in found:
        if event != "[DONE]":
            check_event(url, event)
    return found


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [c for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == index]
    return "".join(c["delta"].get("content", "") for c in choices)


def test_answer_has_every_field_that_clients_read(server: Running) -> None:
    with server.client() as client:
        answer = client.post(URL, json=ask("Grüße")).json()
    assert answer["object"] == "chat.completion" and answer["model"] == "echo"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Grüße", "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 8, 15)
    assert usage["qlocal"].keys() == {
        "cached_tokens",
        "prefill_s",
        "decode_s",
        "tokens_per_s",
        "max_context",
        "restored_tokens",
        "left_out_tokens",
        "drafted_tokens",
        "accepted_tokens",
    }


def test_stream_and_whole_answer_are_the_same_text(server: Running) -> None:
    text = "Straße 今天天气很好 😀\n\tend"
    with server.client() as client:
        whole = client.post(URL, json=ask(text)).json()["choices"][0]["message"]["content"]
        chunks = events(client, ask(text, stream=True))
    assert text_of(chunks) == whole == text
    assert not any("�" in json.dumps(chunk, ensure_ascii=False) for chunk in chunks)


def test_stream_keeps_one_id_and_always_says_finish_reason(server: Running) -> None:
    with server.client() as client:
        chunks = events(client, ask("hello", stream=True))
    assert chunks[-1] == "[DONE]"
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("usage" not in chunk for chunk in chunks[:-1])


def test_usage_chunk_comes_last_without_choices_when_asked_for(server: Running) -> None:
    with server.client() as client:
        chunks = events(client, ask("hello", stream=True, stream_options={"include_usage": True}))
    assert chunks[-2]["choices"] == [] and chunks[-2]["usage"]["completion_tokens"] == 6
    assert all(chunk["usage"] is None for chunk in chunks[:-2])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["STOP", ["STOP", "never"], "ST"])
def test_stop_string_is_cut_and_never_leaks(server: Running, stop: Any, stream: bool) -> None:
    body = ask("before STOP after", stop=stop, stream=stream)
    with server.client() as client:
        if stream:
            chunks = events(client, body)
            text, reason = text_of(chunks), chunks[-2]["choices"][0]["finish_reason"]
        else:
            choice = client.post(URL, json=body).json()["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("before ", "stop")


def test_text_that_only_begins_like_a_stop_string_is_shown(server: Running) -> None:
    with server.client() as client:
        answer = client.post(URL, json=ask("one STO", stop="STOP")).json()
    assert answer["choices"][0]["message"]["content"] == "one STO"


@pytest.mark.parametrize(("field", "value"), [("max_tokens", 3), ("max_completion_tokens", 3)])
def test_max_tokens_ends_with_reason_length(server: Running, field: str, value: int) -> None:
    with server.client() as client:
        answer = client.post(URL, json=ask("abcdef", **{field: value})).json()
    assert answer["choices"][0]["message"]["content"] == "abc"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(server: Running) -> None:
    with server.client() as client:
        response = client.post(URL, json=ask("x" * 1000))
    error = response.json()["error"]
    assert response.status_code == 400 and error["code"] == "context_length_exceeded"
    assert "1000" in error["message"] and "200" in error["message"] and error["param"] == "messages"


def test_max_tokens_beyond_the_context_ends_where_the_context_ends(server: Running) -> None:
    with server.client() as client:
        answer = client.post(URL, json=ask("x" * 150, max_tokens=10_000)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 200


def test_choices_are_complete_and_in_order(server: Running) -> None:
    with server.client() as client:
        whole = client.post(URL, json=ask("abc", n=3, seed=7)).json()
        chunks = events(client, ask("abc", n=3, stream=True))
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
    assert {c["message"]["content"] for c in whole["choices"]} == {"abc"}
    assert [text_of(chunks, i) for i in range(3)] == ["abc"] * 3
    assert whole["usage"]["prompt_tokens"] == 3 and whole["usage"]["completion_tokens"] == 12


def test_logprobs_carry_bytes_and_the_best_tokens_in_order(server: Running) -> None:
    body = ask("é!", logprobs=True, top_logprobs=2)
    with server.client() as client:
        content = client.post(URL, json=body).json()["choices"][0]["logprobs"]["content"]
        chunks = events(client, body | {"stream": True})
    assert [token["bytes"] for token in content] == [[0xC3], [0xA9], [ord("!")]]
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -1.5]
    streamed = [c["choices"][0]["logprobs"] for c in chunks[:-1]]
    assert [token for part in streamed if part for token in part["content"]] == content


def test_logprobs_end_with_the_text_that_is_shown(server: Running) -> None:
    with server.client() as client:
        answer = client.post(URL, json=ask("ab STOP cd", logprobs=True, stop="STOP")).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == answer["choices"][0]["message"]["content"] == "ab "


def test_makers_sampling_is_the_default_and_the_request_wins(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK_LOG", str(tmp_path / "log"))
    server = start()
    with server.client() as client:
        client.post(URL, json=ask("a"))
        client.post(URL, json=ask("b", temperature=0, top_p=0.5, seed=4, logit_bias={"97": -100}))
    first, second = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("Submit")]
    assert "temperature=0.7, top_k=20" in first and "stop_ids=[256]" in first and "num_tokens=257" in first
    assert "top_k=20, top_p=0.5" in second and "seed=4, logit_bias={97: -100.0}" in second


def test_engine_error_is_an_event_and_no_clean_end(server: Running) -> None:
    with server.client() as client:
        chunks = events(client, ask("ERROR", stream=True))
        whole = client.post(URL, json=ask("ERROR"))
    assert chunks[-1]["error"]["message"] == "logits are not finite"
    assert whole.status_code == 503 and whole.headers["x-should-retry"] == "false"


def test_template_error_is_a_400(server: Running) -> None:
    with server.client() as client:
        response = client.post(URL, json=ask("REFUSE"))
    assert response.status_code == 400 and response.json()["error"]["param"] == "messages"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("word", ["HANG", "SLOW" + "x" * 100])
def test_disconnect_cancels_the_sequence(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, stream: bool
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("FAKE_RANK_LOG", str(log))
    server = start()
    body = json.dumps(ask(word, stream=stream)).encode()
    head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.address.socket))
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: "Submit" in log.read_text())
        assert server.service.engine.running == 1 and "Cancel" not in log.read_text()
        if stream:
            assert client.recv(1) == b"H"
    eventually(lambda: "Cancel" in log.read_text())
    assert server.service.engine.running == 0


def test_openai_client_streams_and_completes_over_tcp(start: Start) -> None:
    server = start(tcp=True)
    with OpenAI(base_url=f"{server.address.url}/v1", api_key=TOKEN, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["echo"]
        answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "Hi 😀"}])
        assert answer.choices[0].message.content == "Hi 😀"
        with client.chat.completions.stream(model="echo", messages=[{"role": "user", "content": "Hi"}]) as stream:
            assert stream.get_final_completion().choices[0].message.content == "Hi"
        completion = client.completions.create(model="echo", prompt="once", echo=True, max_tokens=2)
        assert completion.choices[0].text == "onceon"
        with pytest.raises(BadRequestError, match="200"):
            client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "x" * 500}])
        with pytest.raises(NotFoundError, match="not loaded"):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(APIError, match="not finite"):
            list(
                client.chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": "ERROR"}], stream=True
                )
            )
