"""What a model thinks: kept, folded, and never sent back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from qlocal.chat.events import AnswerEvent, Done, TextDelta, ThinkingDelta
from qlocal.chat.thinking import Parts, answer_of, as_text, may_open, parts_of
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink
from tests.chat.scripted import answer_of as scripted_answer

THOUGHT = "First this.\n\nThen **that**."
ANSWER = f"<think>\n{THOUGHT}\n</think>\n\nIt is so."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain", Parts(None, "plain")),
        (ANSWER, Parts(THOUGHT, "It is so.")),
        ("\n<think>a\nb", Parts("a\nb", "", is_thinking=True)),
        ("the template opened it\n</think>\n\nyes", Parts("the template opened it", "yes")),
        ("write `</think>` to end it", Parts(None, "write `</think>` to end it")),
        ("about <think> tags", Parts(None, "about <think> tags")),
        ("<think></think>yes", Parts("", "yes")),
    ],
)
def test_an_answer_has_parts(text: str, parts: Parts) -> None:
    assert parts_of(text) == parts


def test_a_beginning_that_may_become_a_thought_is_held_back() -> None:
    assert [may_open(text) for text in ("", "\n", "<thi", "<think>", "<b", "x")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_thoughts_of_any_server_become_text_between_marks() -> None:
    async def events() -> AsyncGenerator[AnswerEvent, None]:
        for event in (ThinkingDelta("First "), ThinkingDelta("this."), TextDelta("It"), TextDelta(" is"), Done("stop")):
            yield event

    async def gathered() -> str:
        return "".join([event.text async for event in as_text(events()) if isinstance(event, TextDelta)])

    assert asyncio.run(gathered()) == "<think>\nFirst this.\n</think>\n\nIt is"
    assert answer_of(asyncio.run(gathered())) == "It is"


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_a_thought_is_folded_and_can_be_unfolded(tmp_path: Path, pieces: int) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("why?")
        await chat.until_shown("It is so.")
        await chat.until_idle()
        assert f"▸ Thought, {len(THOUGHT)} characters" in chat.shown
        assert "First this." not in chat.shown and "<think>" not in chat.shown
        await chat.pilot.press("ctrl+t")
        assert "▾ Thought" in chat.shown and "│ First this." in chat.shown and "│ Then that." in chat.shown
        assert chat.shown.index("First this.") < chat.shown.index("It is so.")
        await chat.pilot.press("ctrl+t")
        assert "First this." not in chat.shown and "It is so." in chat.shown

    run_chat(tmp_path, ScriptedLink([scripted_answer(ANSWER, pieces)]), use)


def test_a_thought_that_goes_on_says_how_long_it_is_and_grows_where_it_is_unfolded(tmp_path: Path) -> None:
    first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def use(chat: Chat) -> None:
        await chat.say("why?")
        await chat.until_shown("▸ Thinking … 6 characters")
        await chat.pilot.press("ctrl+t")
        assert "│ First" in chat.shown
        first.set()
        await chat.until_shown("│ First this.")
        assert "▾ Thinking … 12 characters" in chat.shown
        second.set()
        await chat.until_shown("Yes.")
        assert "▾ Thought, 12 characters" in chat.shown and "│ First this." in chat.shown
        third.set()
        await chat.until_idle()
        assert "▾ Thought, 12 characters" in chat.shown and "Yes." in chat.shown

    script = [
        ThinkingDelta("First "), first, ThinkingDelta("this. "), second, TextDelta("Yes."), third, Done("stop"),
    ]  # fmt: skip
    run_chat(tmp_path, ScriptedLink([script]), use)


def test_a_thought_is_kept_but_not_sent_back(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("It is so.")
        await chat.until_idle()
        await chat.say("two")
        await chat.until(lambda: len(chat.link.requests) == 2)
        assert chat.link.requests[1][1] == {"role": "assistant", "content": "It is so."}

    script = [ThinkingDelta("Hm."), TextDelta("It is so."), Done("stop")]
    run_chat(tmp_path, ScriptedLink([script]), use)
    history = stored(tmp_path)
    branch = history.branch(history.conversations()[0].conversation_id)
    assert branch[1].content == "<think>\nHm.\n</think>\n\nIt is so."


def test_an_answer_that_only_closes_its_thought_is_folded_when_it_does(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("why?")
        await chat.until_shown("Certain.")
        await chat.until_idle()
        assert "▸ Thought, 6 characters" in chat.shown and "secret" not in chat.shown

    run_chat(tmp_path, ScriptedLink([scripted_answer("secret\n</think>\n\nCertain.", 3)]), use)
