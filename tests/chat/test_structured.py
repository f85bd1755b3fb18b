"""Answers held to a JSON schema: how one is chosen, what is sent, and the mark while the answer is written."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from qlocal.chat.events import Done, Failure, TextDelta
from qlocal.chat.screens.picker import Picker
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.fixture(autouse=True)
def schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config" / "schemas"
    folder.mkdir(parents=True)
    (folder / "a number.json").write_text(json.dumps(SCHEMA))
    monkeypatch.setenv("QLOCAL_CONFIG", str(folder.parent))
    return folder


def test_a_schema_from_the_list_is_sent_until_it_is_taken_away(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of('{"a": 1}'), answer_of("Free.")])

    async def use(chat: Chat) -> None:
        await chat.say("/schema")
        await chat.until(lambda: isinstance(chat.app.screen, Picker))
        await chat.pilot.press(*"number", "enter")
        await chat.until(lambda: "held to the schema a number" in chat.notice)
        await chat.say("one")
        await chat.until_shown('{"a": 1}')
        await chat.until_idle()
        assert "JSON ✓" in chat.status and "so far" not in chat.status
        await chat.say("/schema")
        await chat.until(lambda: isinstance(chat.app.screen, Picker))
        await chat.pilot.press(*"free", "enter")
        await chat.until(lambda: "free again" in chat.notice)
        await chat.say("two")
        await chat.until_shown("Free.")
        assert "JSON" not in chat.status

    run_chat(tmp_path, link, use, size=(140, 30))
    form = {"type": "json_schema", "json_schema": {"name": "a_number", "schema": SCHEMA, "strict": True}}
    assert link.options[0]["response_format"] == form and "response_format" not in link.options[1]


def test_the_mark_follows_the_answer_as_it_is_written(tmp_path: Path) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    events = [TextDelta('{"a": '), gates[0], TextDelta("x"), gates[1], Done("stop")]

    async def use(chat: Chat) -> None:
        await chat.say(f"/schema {json.dumps(SCHEMA)}")
        await chat.until(lambda: "held to the schema pasted" in chat.notice)
        await chat.say("go")
        await chat.until(lambda: "JSON ✓ so far" in chat.status)
        gates[0].set()
        await chat.until(lambda: "JSON ✗" in chat.status)
        gates[1].set()

    run_chat(tmp_path, ScriptedLink([events]), use, size=(140, 30))


def test_a_schema_that_the_server_refuses_is_said(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say('/schema {"type": "nonsense"}')
        await chat.until(lambda: "held to the schema" in chat.notice)
        await chat.say("go")
        await chat.until(lambda: "json_schema cannot be followed" in chat.notice)

    run_chat(tmp_path, ScriptedLink([[Failure("json_schema cannot be followed: no type 'nonsense'")]]), use)


@pytest.mark.parametrize(
    ("argument", "said"),
    [("/no/such/file.json", "cannot be read"), ("{broken", "is not JSON"), ("LIST", "expected an object")],
)
def test_what_is_no_schema_is_said(tmp_path: Path, argument: str, said: str) -> None:
    (tmp_path / "list.json").write_text("[1]")

    async def use(chat: Chat) -> None:
        await chat.say(f"/schema {argument.replace('LIST', str(tmp_path / 'list.json'))}")
        await chat.until(lambda: said in chat.notice)

    run_chat(tmp_path, ScriptedLink([answer_of("x")]), use)
