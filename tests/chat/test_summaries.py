"""A summary is written by the model before one's eyes, stands for what it names, and is taken back by a word."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from qlocal.chat.events import Done, Failure, TextDelta, ThinkingDelta
from qlocal.chat.store.records import Message, MessageState, Role
from qlocal.chat.summaries import INSTRUCTION, INTRODUCTION, replaced_in, sent
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_room import asked, full_link, offers, overfill, talk

OFFER = "Have the model summarize the 1 oldest turns; they stay in the history"


def message(number: int, summary_of: list[int] | None = None, **meta: object) -> Message:
    role = Role.ASSISTANT if summary_of is not None or number % 2 == 0 else Role.USER
    known = meta if summary_of is None else {"summary_of": summary_of, **meta}
    return Message(number, number - 1 or None, role, f"m{number}", MessageState.COMPLETE, "tiny", 0.0, known)


def ids(path: list[Message], without: set[int] | None = None) -> list[int]:
    return [one.message_id for one in sent(path, without or set())]


async def choose(chat: Chat, offer: str) -> None:
    for _ in range(offers(chat).index(offer)):
        await chat.pilot.press("down")
    await chat.pilot.press("enter")


def test_a_summary_is_sent_in_the_place_of_the_first_message_it_stands_for() -> None:
    path = [message(1), message(2), message(3), message(4), message(5, [1, 2]), message(6)]
    assert ids(path) == [5, 3, 4, 6]
    assert replaced_in(path) == {1, 2}
    assert ids(path[:4]) == [1, 2, 3, 4], "what was sent before there was a summary is still known"
    assert ids(path, {5, 1, 2}) == [3, 4, 6]


def test_a_summary_of_a_summary_stands_for_both() -> None:
    path = [message(1), message(2), message(3, [1, 2]), message(4), message(5, [1, 2, 3, 4]), message(6)]
    assert ids(path) == [5, 6]


@pytest.mark.parametrize("summary_of", [[9], [6], [3], [], "all", [None]])
def test_a_summary_takes_away_nothing_that_does_not_stand_before_it(summary_of: list[int]) -> None:
    path = [message(1), message(2), message(3, summary_of), message(4), message(5)]
    assert ids(path) == [1, 2, 4, 5]


def test_a_summary_that_was_stopped_or_taken_back_stands_for_nothing() -> None:
    from dataclasses import replace

    stopped = replace(message(3, [1, 2]), state=MessageState.STOPPED)
    assert ids([message(1), message(2), stopped, message(4)]) == [1, 2, 4]
    assert ids([message(1), message(2), message(3, [1, 2], left_out=True), message(4)]) == [1, 2, 4]


def test_the_oldest_turns_are_summarized_and_taken_back(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await overfill(chat)
        assert OFFER in offers(chat)
        await choose(chat, OFFER)
        await chat.until(lambda: len(chat.link.requests) == 4)
        await chat.until_idle()
        assert [m["content"] for m in chat.link.requests[2]] == ["one", "Yes.", INSTRUCTION]
        assert chat.link.options[2]["max_tokens"] == 512
        summed = f"{INTRODUCTION}\n\nThey said one.\n\ntwo"
        assert [m["content"] for m in chat.link.requests[3]] == [summed, "Yes.", "three"]
        assert [m["role"] for m in chat.link.requests[3]] == ["user", "assistant", "user"]
        await chat.until_shown("Summary by tiny-model · sent in the place of 2 messages")
        branch = chat.app.chat.desk.session.branch
        assert [m.content for m in branch] == ["one", "Yes.", "two", "Yes.", "They said one.", "three", "Yes."]
        await chat.say("/send-all")
        await chat.until(lambda: "sent again" in chat.notice)
        assert chat.app.chat.desk.session.request()[0]["content"] == "one"
        assert len(chat.app.chat.desk.session.request()) == 5

    link = full_link()
    link.answers = [answer_of(text) for text in ("Yes.", "Yes.", "They said one.", "Yes.")]
    run_chat(tmp_path, link, use)
    history = stored(tmp_path)
    conversation_id = history.conversations()[0].conversation_id
    kept = history.messages(conversation_id)
    assert [m.content for m in kept if m.is_summary] == ["They said one."]
    # The branch without the summary is there as well, up to the message that did not fit.
    history.select_branch(conversation_id, next(m.message_id for m in kept if m.content == "three"))
    assert [m.content for m in history.branch(conversation_id)] == ["one", "Yes.", "two", "Yes.", "three"]


def test_a_summary_streams_and_stopping_it_changes_nothing(tmp_path: Path) -> None:
    never = asyncio.Event()
    link = full_link()
    link.answers = [answer_of("Yes."), answer_of("Yes."), [TextDelta("They sa"), never, Done("stop")]]

    async def use(chat: Chat) -> None:
        await overfill(chat)
        await choose(chat, OFFER)
        await chat.until_shown("They sa")
        assert "three" not in chat.shown and "Esc stops it" in chat.notice
        await chat.pilot.press("escape")
        await chat.until_idle()
        await chat.until_shown("three")
        assert "They sa" not in chat.shown and link.num_cancelled == 1
        assert len(chat.app.chat.desk.session.request()) == 5

    run_chat(tmp_path, link, use)
    history = stored(tmp_path)
    kept = history.messages(history.conversations()[0].conversation_id)
    assert [(m.content, m.state) for m in kept if m.is_summary] == [("They sa", MessageState.STOPPED)]


def test_what_a_model_thinks_before_a_summary_is_kept_and_not_sent(tmp_path: Path) -> None:
    thinking = [ThinkingDelta("What did "), ThinkingDelta("they say?"), *answer_of("They said one.")]
    link = full_link()
    link.answers = [answer_of("Yes."), answer_of("Yes."), thinking, answer_of("Yes.")]  # type: ignore[list-item]

    async def use(chat: Chat) -> None:
        await overfill(chat)
        await choose(chat, OFFER)
        await chat.until(lambda: len(chat.link.requests) == 4)
        await chat.until_idle()
        assert link.requests[3][0]["content"] == f"{INTRODUCTION}\n\nThey said one.\n\ntwo"

    run_chat(tmp_path, link, use)
    history = stored(tmp_path)
    kept = history.messages(history.conversations()[0].conversation_id)
    assert [m.content for m in kept if m.is_summary] == ["<think>\nWhat did they say?\n</think>\n\nThey said one."]


@pytest.mark.parametrize(
    ("events", "said"),
    [([Failure("the engine died")], "the engine died"), ([TextDelta("  "), Done("stop")], "wrote no summary")],
)
def test_a_summary_that_fails_stands_for_nothing(tmp_path: Path, events: list[object], said: str) -> None:
    link = full_link()
    link.answers = [answer_of("Yes."), answer_of("Yes."), events]  # type: ignore[list-item]

    async def use(chat: Chat) -> None:
        await overfill(chat)
        await choose(chat, OFFER)
        await chat.until(lambda: said in chat.notice)
        await chat.until_idle()
        assert len(link.requests) == 3 and len(chat.app.chat.desk.session.request()) == 5

    run_chat(tmp_path, link, use)


def test_a_summary_can_be_asked_for_at_any_time(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of("Yes."), answer_of("All of it."), answer_of("Go on.")])

    async def use(chat: Chat) -> None:
        await chat.say("/summarize")
        assert "no conversation" in chat.notice
        await chat.pilot.press("ctrl+u")
        await talk(chat, "one")
        await chat.say("/summarize")
        await chat.until_shown("sent in the place of 2 messages")
        await chat.until_idle()
        await chat.pilot.press("alt+up")
        await chat.pilot.press("alt+e")
        assert "not edited" in chat.notice and not chat.prompt.text
        await talk(chat, "two")
        assert [m["content"] for m in link.requests[2]] == [f"{INTRODUCTION}\n\nAll of it.\n\ntwo"]
        # The conversation goes on elsewhere with the same meaning.
        await chat.say("/new-from-here")
        await chat.until(lambda: "new conversation" in chat.notice)
        assert len(chat.app.chat.desk.session.request()) == len(link.requests[2])
        await chat.say(f"/export {tmp_path / 'all.json'}")
        await chat.until(lambda: "Written to" in chat.notice)
        await chat.say(f"/import-file {tmp_path / 'all.json'}")
        await chat.until(lambda: "imported" in chat.notice)
        assert len(chat.app.chat.desk.session.request()) == len(link.requests[2])

    run_chat(tmp_path, link, use)
    exported = json.loads((tmp_path / "all.json").read_text())
    assert any("summary_of" in m["meta"] for m in exported["conversations"][0]["messages"])


def test_a_turn_that_does_not_fit_by_itself_is_not_offered_to_be_summarized(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        chat.link.per_message = 9000
        await chat.say("long")
        await chat.until(lambda: asked(chat))
        assert not any("summarize" in offer for offer in offers(chat))

    run_chat(tmp_path, full_link(), use)
