"""Endpoints elsewhere: chosen beside local models, never spoken to unasked, and their keys never kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlocal.chat.endpoints import Endpoint, read_endpoints
from qlocal.chat.link import LocalLink, open_link
from qlocal.chat.link_state import Choice
from qlocal.chat.switch import SwitchLink
from qlocal.config import ChatOptions
from qlocal.errors import ConfigError
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.fake_server import Handler, fake_server
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_room import asked, offers, talk

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def url() -> Iterator[str]:
    with fake_server() as found:
        yield found


def away(url: str, **values: Any) -> Endpoint:
    return Endpoint("work", url, ("fake-model", "second"), **values)


def drive(tmp_path: Path, link: SwitchLink, use: Any) -> None:
    run_chat(tmp_path, link, use)  # type: ignore[arg-type]


def home() -> ScriptedLink:
    return ScriptedLink([answer_of("From here.")])


async def choose(chat: Chat, name: str) -> None:
    await chat.pilot.press("f2")
    await chat.until(lambda: asked(chat))
    await chat.pilot.press(*name, "enter")
    await chat.until(lambda: chat.app.screen is chat.app.chat)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("x", "expected a table"),
        ({"url": "https://a.example", "model": "m", "key": "sk"}, "unknown key 'key'"),
        ({"url": "https://a.example"}, "model is missing"),
        ({"url": "https://a.example", "model": []}, "model is missing"),
        ({"url": "a.example", "model": "m"}, "url is not the URL"),
        ({"url": "file:///etc/passwd", "model": "m"}, "url is not the URL"),
        ({"url": "https://[::1", "model": "m"}, "url is not the URL"),
        ({"url": "https://u:sk-secret@a.example", "model": "m"}, "password in it"),
        ({"url": "http://a.example", "model": "m", "key_env": "K"}, "unencrypted"),
        ({"url": "https://a.example", "model": "m", "key_env": "K", "key_file": "f"}, "key_env and key_file"),
        ({"url": "https://a.example", "model": "m", "key_env": 3}, "key_env is 3"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_named(values: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_endpoints({"endpoints": {"work": values}})
    assert "chat.endpoints.work" in str(caught.value) and said in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_key_comes_from_a_variable_or_a_file_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = read_endpoints({"endpoints": {"a": {"url": "http://[::1]:8080/v1", "model": "m", "key_env": "A_KEY"}}})["a"]
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert named.key() == KEY and KEY not in repr(named)
    monkeypatch.setenv("A_KEY", f"{KEY}\nHost: elsewhere")
    with pytest.raises(ConfigError, match="A_KEY") as caught:
        named.key()
    assert KEY not in str(caught.value)
    path = tmp_path / "key"
    filed = away("https://a.example", key_file=path)
    with pytest.raises(ConfigError, match=str(path)):
        filed.key()
    path.write_text(KEY + "\n")
    assert filed.key() == KEY and away("https://a.example").key() is None


def test_nothing_is_sent_before_an_endpoint_is_chosen(tmp_path: Path) -> None:
    with fake_server() as url:
        calls: list[str] = []

        async def use(chat: Chat) -> None:
            await talk(chat, "one")
            await chat.pilot.press("f2")
            await chat.until(lambda: asked(chat))
            assert [offer.split("  ")[0] for offer in offers(chat)] == [
                "tiny-model",
                "other-model",
                "fake-model @ work",
                "second @ work",
            ]
            assert url in offers(chat)[2]
            await chat.pilot.press("escape")
            calls.extend(str(one) for one in Handler.requests)

        drive(tmp_path, SwitchLink(home(), [away(url, key_env="UNSET_FOR_SURE")]), use)
        assert calls == [] and Handler.requests == []


def test_a_conversation_goes_on_at_an_endpoint_and_comes_back(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK_KEY", KEY)
    local = home()

    async def use(chat: Chat) -> None:
        await talk(chat, "one")
        await choose(chat, "fake")
        await chat.until(lambda: "fake-model @ work" in chat.status and "ready" in chat.status)
        await chat.until(lambda: f"sent to {url}" in chat.notice.replace("\n", " "))
        await talk(chat, "two")
        assert [m["content"] for m in Handler.requests[0]["messages"]] == ["one", "From here.", "two"]
        assert Handler.requests[0]["model"] == "fake-model"
        assert Handler.requests[0]["authorization"] == f"Bearer {KEY}"
        for command, said in (
            ("/ledger", "needs our own server"),
            ("/replay", "needs our own"),
            ("/alternatives", "N"),
        ):
            await chat.say(command)
            await chat.until(lambda said=said: said in chat.notice)  # type: ignore[misc]
        await chat.pilot.press("alt+g")
        await chat.until(lambda: "needs our own server" in chat.notice)
        await chat.until_idle()
        await choose(chat, "other-model")
        await chat.until(lambda: "other-model · ready" in chat.status)
        await talk(chat, "three")
        assert len(Handler.requests) == 1 and len(local.requests) == 2

    drive(tmp_path, SwitchLink(local, [away(url, key_env="WORK_KEY")]), use)
    branch = stored(tmp_path).branch(1)
    answers = [m for m in branch if m.model is not None]
    assert [m.model for m in answers] == ["tiny-model", "fake-model @ work", "other-model"]
    assert [m.meta["made_by"].get("endpoint") for m in answers] == [None, url, None]


def test_a_key_reaches_neither_history_nor_export(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK_KEY", KEY)
    monkeypatch.setattr(Handler, "echoes_key", True)

    async def use(chat: Chat) -> None:
        await choose(chat, "fake")
        await chat.until(lambda: "fake-model @ work" in chat.status)
        await talk(chat, "refuse")
        await chat.until(lambda: "[key]" in chat.notice)
        assert KEY not in chat.notice and Handler.requests[0]["authorization"] == f"Bearer {KEY}"
        await chat.say(f"/export {tmp_path / 'all.json'}")
        await chat.until(lambda: "Written to" in chat.notice)

    drive(tmp_path, SwitchLink(home(), [away(url, key_env="WORK_KEY")]), use)
    exported = json.loads((tmp_path / "all.json").read_text())
    assert "[key]" in exported["conversations"][0]["messages"][1]["meta"]["error"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_key_that_is_missing_is_said_and_the_model_stays(tmp_path: Path, url: str) -> None:
    async def use(chat: Chat) -> None:
        await choose(chat, "fake")
        await chat.until(lambda: "UNSET_FOR_SURE" in chat.notice)
        assert "tiny-model" in chat.status
        await talk(chat, "one")
        assert Handler.requests == []

    drive(tmp_path, SwitchLink(home(), [away(url, key_env="UNSET_FOR_SURE")]), use)


def test_a_session_may_begin_at_an_endpoint_without_a_server_of_our_own(tmp_path: Path, url: str) -> None:
    local = ScriptedLink([answer_of("From here.")], first_states=[])
    endpoint = away(url)

    async def use(chat: Chat) -> None:
        await chat.until(lambda: "second @ work · ready" in chat.status)
        await talk(chat, "one")
        assert Handler.requests[0]["model"] == "second" and Handler.requests[0]["authorization"] is None
        await choose(chat, "tiny-model")
        await chat.until(lambda: "tiny-model · ready" in chat.status)
        assert local.selected == ["tiny-model"]

    drive(tmp_path, SwitchLink(local, [endpoint], (endpoint, "second")), use)


def test_config_names_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path))
    assert isinstance(open_link(ChatOptions(model="tiny")), LocalLink)
    (tmp_path / "config.toml").write_text('[chat.endpoints.work]\nurl = "https://a.example/v1"\nmodel = "large"\n')
    link = open_link(ChatOptions(endpoint="work"))
    assert isinstance(link, SwitchLink)
    choices = asyncio.run(link.choices())
    assert Choice("large @ work", "→ https://a.example/v1") in choices
