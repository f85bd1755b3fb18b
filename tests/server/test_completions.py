from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlocal.schema import EngineState
from tests.server.conftest import Running, Start
from tests.server.test_chat import events

URL = "/v1/completions"


def complete(server: Running, prompt: Any, **fields: Any) -> Any:
    with server.client() as client:
        response = client.post(URL, json={"prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_prompts_and_choices_keep_their_order(server: Running) -> None:
    answer = complete(server, ["ab", "xyz"], n=2)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "ab"), (1, "ab"), (2, "xyz"), (3, "xyz")]
    assert answer["object"] == "text_completion" and answer["usage"]["prompt_tokens"] == 5


def test_token_ids_are_a_prompt(server: Running) -> None:
    assert complete(server, list(b"hey"))["choices"][0]["text"] == "hey"


def test_echo_puts_the_prompt_in_front_even_of_nothing(server: Running) -> None:
    assert complete(server, "abc", echo=True, max_tokens=1)["choices"][0]["text"] == "abca"
    scored = complete(server, "abc", echo=True, max_tokens=0, logprobs=1)
    (choice,) = scored["choices"]
    assert choice["text"] == "abc" and choice["finish_reason"] == "length"
    assert scored["usage"]["completion_tokens"] == 0
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"] and choice["logprobs"]["text_offset"] == [0, 1, 2]


def test_legacy_logprobs_have_offsets_and_best_tokens(server: Running) -> None:
    logprobs = complete(server, "ab", logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}


def test_stream_is_the_same_text(server: Running) -> None:
    with server.client() as client:
        chunks = events(client, {"prompt": "Käse 😀", "stream": True}, URL)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "Käse 😀"
    assert chunks[-1] == "[DONE]" and chunks[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "tools"),
        ({"prompt": "a", "guided_json": {"type": "object"}}, "guided_json"),
        ({"prompt": "a", "suffix": "b", "echo": True}, "suffix"),
        ({"prompt": [1], "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": [257]}, "prompt"),
        ({"prompt": "a", "logit_bias": {"257": 1}}, "logit_bias"),
        ({"prompt": "x" * 300}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({}, "prompt"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    with server.client() as client:
        response = client.post(URL, json=body)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


@pytest.mark.parametrize(("prompt", "ids"), [("ab", [1, 97, 98, 2, 99, 3]), ("", [1, 2, 99, 3])])
def test_a_suffix_is_put_behind_the_prompt_with_the_vocabulary_s_own_tokens(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, ids: list[int]
) -> None:
    monkeypatch.setenv("FAKE_RANK_LOG", str(tmp_path / "log"))
    server = start("fills")
    server.wait_for(EngineState.READY)
    answer = complete(server, prompt, suffix="c", max_tokens=4)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    submit = next(line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("Submit"))
    assert f"input_ids={ids}" in submit and "stop_ids=[4, 256]" in submit


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2], [[1], [2]]])
def test_embeddings_are_refused_with_the_reason(server: Running, value: Any) -> None:
    with server.client() as client:
        response = client.post("/v1/embeddings", json={"model": "echo", "input": value})
        assert response.status_code == 400 and response.json()["error"]["code"] == "embeddings_unsupported"
        assert client.post("/v1/embeddings", json={"model": "x", "input": value}).status_code == 404
        assert client.post("/v1/embeddings", json={"input": {}}).status_code == 400


def test_the_document_is_published(server: Running) -> None:
    with server.client() as client:
        document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1") and "/v1/chat/completions" in document["paths"]
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["tools"]
