"""Editing, going on, branches at any message, pruning: nothing is lost, and every change can be left again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.widgets import OptionList

from qlocal.chat import origin
from qlocal.chat.events import Done, TextDelta
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.store.records import Message, MessageState, Role
from qlocal.schema import EngineState, Status
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_room import asked


async def ask(chat: Chat, text: str, answer: str) -> None:
    await chat.say(text)
    await chat.until_shown(answer)
    await chat.until_idle()


def test_an_edited_question_is_a_branch_with_an_answer_of_its_own(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "First.")
        await chat.pilot.press("alt+e")
        assert chat.prompt.text == "one" and "Editing" in str(chat.prompt.border_title)
        await ask(chat, "two", "Second.")
        assert chat.link.requests[1] == [{"role": "user", "content": "two"}]
        assert "▌ two" in chat.shown and "▌ one" not in chat.shown and not chat.prompt.border_title
        # The branch is the question's: the cursor goes there.
        await chat.pilot.press("alt+pageup", "alt+pageup", "alt+left")
        await chat.until_shown("First.")
        assert "┃ one" in chat.shown and "Second." not in chat.shown
        await chat.pilot.press("alt+right")
        await chat.until_shown("┃ two")

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)
    history = stored(tmp_path)
    assert len(history.messages(history.conversations()[0].conversation_id)) == 4


def test_escape_leaves_the_message_as_it_was(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "First.")
        await chat.pilot.press("alt+e", "x", "escape")
        assert chat.prompt.text == "" and not chat.prompt.border_title
        await ask(chat, "two", "Second.")
        assert "▌ one" in chat.shown and "▌ two" in chat.shown

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)


def test_an_answer_can_be_edited_and_is_what_the_model_reads_then(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "Frist.")
        await chat.pilot.press("alt+pageup", "alt+e")
        assert chat.prompt.text == "Frist."
        await chat.say("First.")
        await chat.until_shown("First.")
        await chat.until_idle()
        assert len(chat.link.requests) == 1 and "‹2/2›" in chat.shown
        await ask(chat, "two", "Second.")
        assert chat.link.requests[1][1] == {"role": "assistant", "content": "First."}

    run_chat(tmp_path, ScriptedLink([answer_of("Frist."), answer_of("Second.")]), use)


def test_a_stopped_answer_goes_on_where_it_ended(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("half")
        await chat.pilot.press("escape")
        await chat.until_shown("■ stopped")
        await chat.until_idle()
        await chat.pilot.press("alt+g")
        await chat.until_shown("half an answer")
        await chat.until_idle()
        assert chat.link.requests[1][-1] == {"role": "assistant", "content": "half"}
        assert chat.link.options[-1]["continue_final_message"] is True

    run_chat(
        tmp_path, ScriptedLink([[TextDelta("half"), asyncio.Event()], [TextDelta(" an answer"), Done("stop")]]), use
    )
    history = stored(tmp_path)
    answers = [m for m in history.messages(1) if m.role is Role.ASSISTANT]
    assert [(m.content, m.state) for m in answers] == [
        ("half", MessageState.STOPPED),
        ("half an answer", MessageState.COMPLETE),
    ]


def test_running_again_asks_with_the_same_seed_and_says_whether_the_text_is_the_same(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "First.")
        seed = chat.link.options[-1]["seed"]
        await chat.say("/run-again")
        await chat.until(lambda: "The same text again." in chat.notice)
        assert chat.link.options[-1]["seed"] == seed and len(chat.link.requests) == 2
        await chat.until_idle()
        await chat.say("/run-again")
        await chat.until(lambda: "Another text, with the same seed" in chat.notice)

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("First."), answer_of("Else.")]), use)


STATUS = Status(
    EngineState.READY,
    "1",
    1,
    "tiny-model",
    "/m/tiny",
    plan={"key_type": "f16", "value_type": "f16"},
    weights="a" * 32,
    sampling={"temperature": 0.6, "top_p": 0.9},
)


def ready(**changes: Any) -> LinkState:
    status = replace(STATUS, **changes)
    return LinkState(Phase.READY, status.model, max_context=4096, status=status)


def test_running_again_uses_sampler_and_seed_as_they_were_and_says_what_has_changed_since(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("/sampling top_p=0.5")
        await chat.until(lambda: "top_p 0.5" in chat.notice)
        await ask(chat, "one", "First.")
        assert chat.link.options[-1].keys() == {"top_p", "seed"}, "what the makers recommend is the server's to add"
        await chat.say("/sampling temperature=0.1")
        await chat.until(lambda: "temperature 0.1" in chat.notice)
        now = ready(weights="b" * 32, sampling={"temperature": 1.0}, plan={"key_type": "q8", "value_type": "q4"})
        chat.link.push(now)
        await chat.until(lambda: chat.app.chat.desk.link_state == now)
        await chat.say("/run-again")
        await chat.until(lambda: "The same text again, though" in chat.notice)
        assert "the model's files" in chat.notice and "(then f16, f16, now q8, q4)" in chat.notice
        first = chat.link.options[0]
        assert chat.link.options[-1] == {"temperature": 0.6, "top_p": 0.5, "seed": first["seed"]}
        await chat.until_idle()
        await chat.say("/run-again")
        await chat.until(lambda: "Another text, with the same seed" in chat.notice)

    link = ScriptedLink([answer_of("First."), answer_of("First."), answer_of("Else.")], first_states=[ready()])
    run_chat(tmp_path, link, use, size=(160, 30))
    made_by = stored(tmp_path).branch(1)[-1].meta["made_by"]
    assert (made_by["weights"], made_by["key_type"], made_by["path"]) == ("b" * 32, "q8", "/m/tiny")


def test_files_that_were_only_moved_are_no_change() -> None:
    def made(**meta: Any) -> Message:
        return Message(1, None, Role.ASSISTANT, "x", MessageState.COMPLETE, "m", 0.0, {"made_by": meta})

    assert origin.changes(made(weights="a", path="/x"), made(weights="a", path="/y")) == []
    assert origin.changes(made(weights=None), made(weights="a")) == [], "of an older server nothing is known"
    assert origin.changes(made(weights="a"), made(weights="b")) == ["the model's files"]
    imported = Message(1, None, Role.ASSISTANT, "x", MessageState.COMPLETE, "m", 0.0, {"made_by": "me", "asked": []})
    assert origin.changes(imported, made(weights="a")) == [] and origin.origin_section(imported).rows


def test_the_tree_shows_all_branches_and_goes_to_one(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "First.")
        await chat.pilot.press("ctrl+r")
        await chat.until_shown("Second.")
        await chat.until_idle()
        await chat.pilot.press("f8")
        await chat.until(lambda: asked(chat))
        lines = [str(option.prompt) for option in chat.app.screen.query_one(OptionList).options]
        assert [line.split(":")[0].strip() for line in lines] == ["● You", "○ tiny-model", "● tiny-model"]
        await chat.pilot.press("down", "enter")
        await chat.until_shown("First.")
        assert "Second." not in chat.shown

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)


def test_pruning_asks_first_and_deletes_what_is_below(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "First.")
        await chat.pilot.press("ctrl+r")
        await chat.until_shown("Second.")
        await chat.until_idle()
        await chat.say("/prune")
        await chat.until(lambda: asked(chat))
        await chat.pilot.press("enter")  # what is marked first deletes nothing
        await chat.until(lambda: chat.app.screen is chat.app.chat)
        assert "Second." in chat.shown
        await chat.say("/prune")
        await chat.until(lambda: asked(chat))
        await chat.pilot.press("down", "enter")
        await chat.until_shown("First.")
        assert "1 messages are deleted" in chat.notice

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)
    assert [m.content for m in stored(tmp_path).messages(1)] == ["one", "First."]


def test_a_new_conversation_begins_with_what_was_said_up_to_the_cursor(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "one", "First.")
        await ask(chat, "two", "Second.")
        await chat.pilot.press("alt+pageup", "alt+pageup", "alt+pageup")
        await chat.say("/new-from-here")
        await chat.until(lambda: "This is a new conversation" in chat.notice)
        assert "First." in chat.shown and "two" not in chat.shown

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)
    history = stored(tmp_path)
    assert sorted(len(history.branch(c.conversation_id)) for c in history.conversations()) == [2, 4]
