"""Finding conversations: search as one types, the sidebar, titles, pins, tags, and drafts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from textual.widgets import OptionList

from qlocal.chat.features.finding import grouped
from qlocal.chat.screens.picker import Picker
from qlocal.chat.screens.search import SearchScreen
from qlocal.chat.store.database import open_database
from qlocal.chat.store.han import han
from qlocal.chat.store.history import History
from qlocal.chat.store.records import Conversation, MessageState, Role
from qlocal.chat.widgets.editing import LineEditor
from qlocal.chat.widgets.sidebar import Sidebar
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_editing import ask


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(open_database(tmp_path / "history.sqlite3")[0])


def test_a_hit_opens_its_conversation_on_its_branch(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "about bees", "They dance.")
        await chat.pilot.press("ctrl+r")
        await chat.until_shown("They hum.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+n")
        await ask(chat, "about ants", "They march.")
        await chat.pilot.press("ctrl+f")
        await chat.until(lambda: isinstance(chat.app.screen, SearchScreen))
        await chat.pilot.press(*"dance")
        options = chat.app.screen.query_one(OptionList)
        await chat.until(
            lambda: options.option_count == 1 and "They dance." in str(options.get_option_at_index(0).prompt)
        )
        await chat.pilot.press("enter")
        await chat.until_shown("They dance.")
        assert "about bees" in chat.shown and "They hum." not in chat.shown

    run_chat(tmp_path, ScriptedLink([answer_of(text) for text in ("They dance.", "They hum.", "They march.")]), use)


def test_keys_in_the_search_act_in_their_order_and_enter_takes_what_they_find(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "about ants", "They march.")
        await chat.pilot.press("ctrl+n")
        await ask(chat, "about bees", "They dance.")
        await chat.pilot.press("ctrl+f")
        await chat.until(lambda: isinstance(chat.app.focused, LineEditor))
        chat.press_at_once(*"xants", "home", "delete", "end", "z", "backspace", "enter")
        await chat.until_shown("They march.")

    run_chat(tmp_path, ScriptedLink([answer_of("They march."), answer_of("They dance.")]), use)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(word, True) for word in ("文", "中文", "学习中文", "日", "中文 hard", "hard", "HARD")]
    + [(word, False) for word in ("文中", "hardly", "ha", '"quoted" NEAR', "")],
)
def test_words_of_every_script_are_found(history: History, wanted: str, found: bool) -> None:
    conversation_id = history.new_conversation("t", None, None)
    history.add_message(conversation_id, None, Role.USER, "我在学习中文, it is hard. 日本語")
    assert bool(history.search(wanted)) == found


def test_what_is_edited_streamed_or_deleted_is_found_as_it_is(history: History) -> None:
    conversation_id = history.new_conversation("t", None, None)
    prompt = history.add_message(conversation_id, None, Role.USER, "question")
    answer = history.begin_answer(conversation_id, prompt, "m")
    history.save_partial(answer, "半个答案 half")
    assert not history.search("half") and not history.search("半")
    history.finish_answer(answer, "整个答案 whole", MessageState.COMPLETE, {})
    assert history.search("whole") and history.search("整个") and not history.search("半")
    assert history.prune(conversation_id, answer) == 1
    assert not history.search("whole") and not history.search("整")
    history.delete(conversation_id)
    assert not history.search("question") and history.conversations() == []


def test_gaps_are_not_crossed() -> None:
    assert han("中文, 日本 ab 語") == "中 文 x 日 本 x 語" and han("abc") == ""


def test_the_sidebar_opens_conversations_and_shows_pins_titles_and_tags(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "about bees", "Bees.")
        await chat.say("/rename All of the bees")
        await chat.until(lambda: "All of the bees" in chat.notice)
        await chat.say("/tag #insects, yellow")
        await chat.until(lambda: "#insects #yellow" in chat.notice)
        await chat.say("/pin")
        await chat.until(lambda: "Pinned" in chat.notice)
        await chat.pilot.press("ctrl+n")
        await ask(chat, "about ants", "Ants.")
        await chat.pilot.press("ctrl+b")
        bar = chat.app.chat.query_one(Sidebar)
        await chat.until(lambda: bar.option_count == 4)
        lines = [str(option.prompt).strip() for option in bar.options]
        assert lines == ["Pinned", "All of the bees #insects #yellow", "Today", "● about ants"]
        bar.focus()
        await chat.pilot.press("home", "enter")
        await chat.until_shown("Bees.")
        await chat.pilot.press("ctrl+b")
        assert not bar.display

    run_chat(tmp_path, ScriptedLink([answer_of("Bees."), answer_of("Ants.")]), use, size=(100, 30))


def test_deleting_a_conversation_asks_first(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await ask(chat, "about bees", "Bees.")
        for keys, left in ((("enter",), 1), (("down", "enter"), 0)):
            await chat.say("/delete-conversation")
            await chat.until(lambda: isinstance(chat.app.screen, Picker))
            await chat.pilot.press(*keys)
            await chat.until(lambda: chat.app.screen is chat.app.chat)
            await chat.pilot.pause(0.1)
            assert len(stored(tmp_path).conversations()) == left

    run_chat(tmp_path, ScriptedLink([answer_of("Bees.")]), use)


def test_conversations_are_grouped_by_day() -> None:
    now = time.mktime((2026, 11, 23, 12, 0, 0, 0, 0, -1))
    ages = {1: 0.0, 2: 3600.0, 3: 86_400.0, 4: 40 * 86_400.0}
    conversations = [Conversation(n, f"c{n}", None, None, 0.0, now - age) for n, age in ages.items()]
    conversations.append(Conversation(5, "c5", None, None, 0.0, now, pinned_at=now))
    found = {heading: [c.conversation_id for c in members] for heading, members in grouped(conversations, now)}
    assert found == {"Today": [1, 2], "Yesterday": [3], "2026-10-14": [4], "Pinned": [5]}
