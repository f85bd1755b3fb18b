"""Prompts kept under names: what the routes say, refuse and remove. The fake rank keeps them in its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlocal.cache.block_file import write_block
from qlocal.cache.saved_session import saved_sessions, with_model
from qlocal.server import sessions
from tests.server.conftest import Running, Start

URL = "/qlocal/sessions"
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("prompt", [{"messages": HI}, {"prompt_ids": [104, 105]}])
def test_a_prompt_is_kept_and_found_under_its_name(server: Running, prompt: dict[str, Any]) -> None:
    with server.client() as client:
        saved = client.post(URL, json={"name": "book", **prompt})
        assert saved.status_code == 200
        assert (saved.json()["name"], saved.json()["model"], saved.json()["tokens"]) == ("book", "echo", 2)
        again = client.post(f"{URL}/book")
        assert again.status_code == 200 and again.json()["tokens"] == 2
    assert server.service.engine.running == 0


@pytest.mark.parametrize(
    ("name", "status", "code", "said"),
    [
        ("nothing", 404, "session_not_found", "there is no session 'nothing'"),
        ("other", 409, "session_differs", "was made with weights 'a', expected 'b'"),
        ("long", 409, "session_differs", "tokens of 'long' were damaged and had to be computed again"),
    ],
)
def test_what_differs_is_refused_and_never_silently_computed(
    server: Running, name: str, status: int, code: str, said: str
) -> None:
    with server.client() as client:
        assert client.post(URL, json={"name": "long", "prompt_ids": [1] * 20}).status_code == 200
        refused = client.post(f"{URL}/{name}")
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (status, code) and said in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "a"}, "messages"),
        ({"messages": HI}, "name"),
        ({"name": "../a", "messages": HI}, "name"),
        ({"name": ".a", "messages": HI}, "name"),
        ({"name": "a\n", "messages": HI}, "name"),
        ({"name": "a" * 65, "messages": HI}, "name"),
        ({"name": "a", "messages": HI, "prompt_ids": [1]}, "messages"),
        ({"name": "a", "prompt_ids": [999]}, "prompt_ids"),
        ({"name": "a", "prompt_ids": [1] * 200}, "prompt_ids"),
        ({"name": "a", "messages": [{"role": "user", "content": "REFUSE"}]}, "messages"),
    ],
)
def test_saving_refuses_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    with server.client() as client:
        response = client.post(URL, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_what_the_engine_cannot_keep_is_said(server: Running) -> None:
    with server.client() as client:
        refused = client.post(URL, json={"name": "refused", "messages": HI})
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "session_not_saved"
    assert refused.json()["error"]["message"] == "'refused' takes 9 GiB. Raise --sessions."


def test_an_engine_that_dies_meanwhile_is_an_error_at_once(start: Start) -> None:
    server = start()
    with server.client() as client:
        dead = client.post(URL, json={"name": "a", "prompt_ids": list(b"DIE")})
        assert dead.status_code == 503 and "exit" in dead.json()["error"]["message"]


def test_names_are_listed_and_removed_and_damage_is_no_name(tmp_path: Path) -> None:
    for name, model in (("b", "two"), ("a", "one")):
        made_by = with_model({"weights": "x"}, model)
        digests = torch.zeros(16, dtype=torch.uint8)
        write_block(tmp_path / f"{name}.session", made_by, "", [1, 2, 3], [digests])
    (tmp_path / "damaged.session").write_bytes(b"nothing")
    assert [(one.name, one.model, one.tokens) for one in saved_sessions(tmp_path)] == [("a", "one", 3), ("b", "two", 3)]
    left = sessions.forget_saved(tmp_path, "a")
    assert [one["name"] for one in left["saved"]] == ["b"] and left["files"] == 2
    for name in ("a", "../b", ""):
        with pytest.raises(Exception, match="there is no session"):
            sessions.forget_saved(tmp_path, name)
    assert sessions.forget(tmp_path) == {"folder": str(tmp_path), "files": 0, "bytes": 0, "saved": []}
    assert sessions.stored(None) == {"folder": None, "files": 0, "bytes": 0, "saved": []}
