from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import STOP_ID, Running
from tests.server.test_chat import URL, ask, events, text_of

SCORE = "/qlocal/score"
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("prompt", [{"messages": HI}, {"prompt_ids": [104, 105]}])
@pytest.mark.parametrize("answer", [{"answer": "é!"}, {"answer_ids": [0xC3, 0xA9, 33]}])
def test_score_tells_every_token_of_the_answer(server: Running, prompt: Any, answer: Any) -> None:
    with server.client() as client:
        scored = client.post(SCORE, json={**prompt, **answer, "top_logprobs": 2}).json()
    assert scored["prompt_tokens"] == 2 and scored["model"] == "echo"
    tokens = scored["tokens"]
    assert [(t["id"], t["bytes"], t["logprob"]) for t in tokens] == [
        (0xC3, [0xC3], -0.5),
        (0xA9, [0xA9], -0.5),
        (33, [33], -0.5),
    ]
    assert [(t["id"], t["logprob"]) for t in tokens[2]["top_logprobs"]] == [(33, -0.5), (34, -1.5)]
    assert server.service.engine.running == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HI}, "answer"),
        ({"answer": "a"}, "messages"),
        ({"messages": HI, "prompt_ids": [1], "answer": "a"}, "messages"),
        ({"messages": HI, "answer": "a", "answer_ids": [1]}, "answer"),
        ({"messages": HI, "answer": ""}, "answer"),
        ({"messages": HI, "answer_ids": []}, "answer_ids"),
        ({"messages": HI, "answer_ids": [257]}, "answer_ids"),
        ({"messages": HI, "answer_ids": [-1]}, "answer_ids.0"),
        ({"prompt_ids": [999], "answer": "a"}, "prompt_ids"),
        ({"messages": HI, "answer": "a", "top_logprobs": 21}, "top_logprobs"),
        ({"messages": HI, "answer": "a" * 199}, "answer"),
        ({"messages": [{"role": "user", "content": "REFUSE"}], "answer": "a"}, "messages"),
    ],
)
def test_score_refuses_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    with server.client() as client:
        response = client.post(SCORE, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("body", "ids"),
    [({"text": "aé"}, [97, 0xC3, 0xA9]), ({"text": "ab", "control": True}, [97, 98]), ({"messages": HI}, [104, 105])],
)
def test_tokenize_tells_ids_and_bytes(server: Running, body: dict[str, Any], ids: list[int]) -> None:
    with server.client() as client:
        found = client.post("/qlocal/tokenize", json=body).json()
    assert found["token_ids"] == ids
    assert [token["bytes"] for token in found["tokens"]] == [[i] for i in ids]


def test_tokenize_takes_a_text_or_a_conversation(server: Running) -> None:
    with server.client() as client:
        assert client.post("/qlocal/tokenize", json={}).status_code == 400
        assert client.post("/qlocal/tokenize", json={"text": "a", "messages": HI}).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_come_with_the_text_that_they_are(server: Running, stream: bool) -> None:
    body = ask("aé\N{GRINNING FACE}", return_token_ids=True, stream=stream)
    with server.client() as client:
        if not stream:
            (choice,) = client.post(URL, json=body).json()["choices"]
            assert bytes(choice["token_ids"]).decode() == choice["message"]["content"]
            return
        choices = [chunk["choices"][0] for chunk in events(client, body)[:-1]]
    for choice in choices[1:-1]:
        assert bytes(choice["token_ids"]).decode() == choice["delta"]["content"]


def test_logprobs_name_the_token_ids(server: Running) -> None:
    with server.client() as client:
        answer = client.post(URL, json=ask("ab", logprobs=True, top_logprobs=1)).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert [(t["id"], t["top_logprobs"][0]["id"]) for t in content] == [(97, 97), (98, 98)]


CONTINUED = [*HI, {"role": "assistant", "content": "Well, "}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "body",
    [ask("hi") | {"messages": CONTINUED, "continue_final_message": True}, ask("hi", answer_start_ids=[*b"Well, "])],
)
def test_a_begun_answer_is_continued(server: Running, body: dict[str, Any], stream: bool) -> None:
    with server.client() as client:
        if stream:
            assert text_of(events(client, body | {"stream": True})) == "hiWell, "
        else:
            answer = client.post(URL, json=body).json()
            assert answer["choices"][0]["message"]["content"] == "hiWell, "  # the rank echoes its whole prompt
            assert answer["usage"]["prompt_tokens"] == 8


def test_an_answer_begun_with_half_a_character_is_completed(server: Running) -> None:
    with server.client() as client:
        answer = client.post(URL, json={"messages": HI, "answer_start_ids": [0xC3], "max_tokens": 1}).json()
    # The rank echoes `h`; the half that was begun is told together with it and never loses a byte.
    assert answer["choices"][0]["message"]["content"] == "�h"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": CONTINUED, "continue_final_message": True, "answer_start_ids": [1]}, "answer_start_ids"),
        ({"answer_start_ids": [STOP_ID]}, "answer_start_ids"),
        ({"answer_start_ids": [300]}, "answer_start_ids"),
        ({"answer_start_ids": []}, "answer_start_ids"),
    ],
)
def test_what_cannot_be_continued_is_refused(server: Running, fields: dict[str, Any], param: str) -> None:
    with server.client() as client:
        response = client.post(URL, json=ask("hi") | fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_an_answer_is_held_against_the_distributions_that_another_model_left(home: Path, server: Running) -> None:
    body = {"messages": HI, "answer": "abc", "top_logprobs": 1}
    with server.client() as client:
        kept = client.post(SCORE, json={**body, "keep": True}).json()
        assert all("kl" not in token for token in kept["tokens"])
        scored = client.post(SCORE, json={**body, "against": kept["reference"]}).json()
        assert [(token["kl"], token["kl_reverse"]) for token in scored["tokens"]] == [(0.25, 0.5)] * 3
        assert "reference" not in scored
        for _ in range(3):
            client.post(SCORE, json={**body, "keep": True})
        gone = client.post(SCORE, json={**body, "against": kept["reference"]})
        assert gone.status_code == 400 and gone.json()["error"]["param"] == "against"
    assert len(list((home / "run" / "references").iterdir())) == 2


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 32 + "/", "A" * 32])
def test_a_reference_that_is_no_name_is_refused(home: Path, server: Running, name: str) -> None:
    with server.client() as client:
        refused = client.post(SCORE, json={"messages": HI, "answer": "a", "against": name})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "against"


def test_distributions_that_would_fill_the_disk_are_refused(
    home: Path, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlocal.server.references.MAX_BYTES", 4000)
    with server.client() as client:
        refused = client.post(SCORE, json={"messages": HI, "answer": "abcd", "keep": True})
    assert refused.status_code == 400 and "at most 3 tokens" in refused.json()["error"]["message"]
