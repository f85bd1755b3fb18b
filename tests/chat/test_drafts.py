"""What is written and not sent is kept, apart for every conversation."""

from __future__ import annotations

from pathlib import Path

from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_editing import ask


def test_a_draft_is_in_the_store_soon_and_back_after_a_restart(tmp_path: Path) -> None:
    async def first(chat: Chat) -> None:
        await chat.pilot.press(*"half a thought")
        await chat.until(lambda: stored(tmp_path).draft(None) == "half a thought")

    async def second(chat: Chat) -> None:
        await chat.until(lambda: chat.prompt.text == "half a thought")
        await ask(chat, "whole", "Yes.")
        await chat.until(lambda: stored(tmp_path).draft(None) == "")

    run_chat(tmp_path, ScriptedLink([]), first)
    run_chat(tmp_path, ScriptedLink([answer_of("Yes.")]), second)


def test_every_conversation_has_its_own(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "about bees", "Bees.")
        await chat.pilot.press(*"more bees")
        await chat.until(lambda: stored(tmp_path).draft(1) == "more bees")
        await chat.pilot.press("ctrl+n")
        await chat.until(lambda: chat.prompt.text == "")
        await ask(chat, "about ants", "Ants.")
        await chat.pilot.press("ctrl+o")
        await chat.pilot.pause(0.3)
        await chat.pilot.press(*"bees", "enter")
        await chat.until_shown("Bees.")
        await chat.until(lambda: chat.prompt.text == "more bees")

    run_chat(tmp_path, ScriptedLink([answer_of("Bees."), answer_of("Ants.")]), use)
