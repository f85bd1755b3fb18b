"""The whole chat with a scripted server: every key, what is shown, what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from textual.widgets import OptionList, Static

from qlocal.chat.events import Done, Failure, TextDelta, TokenCount, Usage
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.screens.conversations import ConversationScreen
from qlocal.chat.screens.models import ModelScreen
from qlocal.chat.store.database import open_database
from qlocal.chat.store.records import MessageState, Role
from qlocal.chat.widgets.transcript import Transcript
from qlocal.config import ChatOptions
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import READY, ScriptedLink, answer_of


def test_a_question_is_answered_and_both_are_kept(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press(*"hello", "ctrl+j", *"again", "enter")
        await chat.until_shown("Certainly.")
        await chat.until_idle()
        assert "▌ hello\n▌ again" in chat.shown
        assert chat.link.requests == [[{"role": "user", "content": "hello\nagain"}]]
        assert "tiny-model · ready · 42.5 tok/s · context" in chat.status and "/ 4,096" in chat.status
        assert chat.prompt.text == ""

    run_chat(tmp_path, ScriptedLink([answer_of("Certainly.")]), use)
    history = stored(tmp_path)
    branch = history.branch(history.conversations()[0].conversation_id)
    assert [(m.role, m.content, m.state) for m in branch] == [
        (Role.USER, "hello\nagain", MessageState.COMPLETE),
        (Role.ASSISTANT, "Certainly.", MessageState.COMPLETE),
    ]
    assert branch[1].meta["tokens_per_s"] == 42.5 and branch[1].model == "tiny-model"


def test_the_second_turn_sends_the_first_and_the_system_prompt(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("First.")
        await chat.until_idle()
        await chat.say("two")
        await chat.until_shown("Second.")
        assert chat.link.requests[1] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "First."},
            {"role": "user", "content": "two"},
        ]

    link = ScriptedLink([answer_of("First."), answer_of("Second.")])
    run_chat(tmp_path, link, use, ChatOptions(model="m", system="Be brief."))


def test_escape_stops_an_answer_and_keeps_its_text(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("half an answer")
        await chat.pilot.press("escape")
        await chat.until_shown("■ stopped")
        assert chat.link.num_cancelled == 1
        assert "half an answer" in chat.shown

    never = asyncio.Event()
    run_chat(tmp_path, ScriptedLink([[TextDelta("half an answer"), never]]), use)
    history = stored(tmp_path)
    answer = history.branch(history.conversations()[0].conversation_id)[-1]
    assert (answer.content, answer.state) == ("half an answer", MessageState.STOPPED)


def test_regenerating_makes_a_branch_that_can_be_left_and_found_again(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("First.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+r")
        await chat.until_shown("Second.")
        await chat.until_shown("‹2/2›")
        await chat.until_idle()
        assert "First." not in chat.shown
        assert chat.link.requests[0] == chat.link.requests[1]
        await chat.pilot.press("alt+left")
        await chat.until_shown("First.")
        assert "‹1/2›" in chat.shown
        await chat.pilot.press("alt+right")
        await chat.until_shown("Second.")

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)


def test_a_message_sent_while_the_model_loads_waits_and_says_so(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.until(lambda: "75%" in chat.status)
        await chat.say("early")
        await chat.until(lambda: "will be sent when the model is ready" in chat.notice)
        assert "▌ early" in chat.shown and chat.link.requests == []
        chat.link.push(LinkState(Phase.READY, "m", max_context=100))
        await chat.until_shown("Now.")
        assert chat.notice == ""

    loading = LinkState(Phase.LOADING, "m", stage="loading weights", fraction=0.75)
    run_chat(tmp_path, ScriptedLink([answer_of("Now.")], first_states=[loading]), use)


def test_what_is_sent_during_an_answer_waits_for_its_end(tmp_path: Path) -> None:
    rest = asyncio.Event()

    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("begun")
        await chat.say("two")
        await chat.say("three")
        await chat.until(lambda: chat.prompt.border_title == "2 waiting: three · Esc takes it back")
        await chat.until(lambda: stored(tmp_path).draft(1) == "two\n\nthree")
        await chat.pilot.press("escape")
        assert chat.prompt.text == "three" and "1 waiting: two" in str(chat.prompt.border_title)
        assert chat.link.num_cancelled == 0
        rest.set()
        await chat.until_shown("the second")
        await chat.until(lambda: stored(tmp_path).draft(1) == "three")
        assert [m.content for m in stored(tmp_path).branch(1)] == ["one", "begun, done", "two", "the second"]
        assert chat.prompt.border_title == "" and len(chat.link.requests) == 2

    first = [TextDelta("begun"), rest, TextDelta(", done"), Done("stop")]
    run_chat(tmp_path, ScriptedLink([first, answer_of("the second")]), use)


@pytest.mark.parametrize("how", ["fails", "is stopped"])
def test_what_waits_comes_back_when_the_answer_does_not_end_well(tmp_path: Path, how: str) -> None:
    rest = asyncio.Event()

    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("begun")
        await chat.say("two")
        await chat.until(lambda: "1 waiting" in str(chat.prompt.border_title))
        if how == "fails":
            rest.set()
        else:
            await chat.pilot.press("escape", "escape")
        await chat.until(lambda: chat.prompt.text == "two")
        await chat.until_shown("■")
        assert len(chat.link.requests) == 1

    run_chat(tmp_path, ScriptedLink([[TextDelta("begun"), rest, Failure("gone")]]), use)


def test_when_the_server_is_back_the_answer_it_cut_can_go_on(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("■ gone")
        chat.link.push(LinkState(Phase.LOST, error="gone"), READY)
        await chat.until(lambda: "Alt+G" in chat.notice)
        await chat.pilot.press("alt+g")
        await chat.until_shown("half and whole")
        assert chat.link.requests[1][-1] == {"role": "assistant", "content": "half"}

    link = ScriptedLink([[TextDelta("half"), Failure("gone")], answer_of(" and whole")])
    run_chat(tmp_path, link, use)


def test_on_a_full_disk_the_chat_goes_on_in_memory_and_says_so(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("kept")
        await chat.until_shown("fine")
        await chat.until_idle()
        store = chat.app._store
        await store.run(lambda history: history._db.execute("PRAGMA max_page_count = 1"))
        await chat.say("large " * 20_000)
        await chat.until(lambda: "disk is full" in chat.notice and "/export" in chat.notice)
        await chat.until(lambda: "history in memory only" in chat.status)
        await chat.until(lambda: len(chat.link.requests) == 2)
        branch = await store.run(lambda history: history.branch(1))
        assert [m.content[:5] for m in branch][:3] == ["kept", "fine", "large"]

    run_chat(tmp_path, ScriptedLink([answer_of("fine")]), use)
    assert [m.content for m in stored(tmp_path).branch(1)] == ["kept", "fine"]


def test_a_prompt_over_the_context_is_refused_with_both_numbers(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("long")
        await chat.until(lambda: "5,000" in chat.notice and "4,096" in chat.notice)
        assert chat.link.requests == [] and "▌ long" in chat.shown

    run_chat(tmp_path, ScriptedLink([answer_of("x")], counted=TokenCount(5000, 4096)), use)


@pytest.mark.parametrize("failure", ["the engine died", "the answer is cut off"])
def test_a_failure_is_shown_beside_the_prompt_and_the_text_stays(tmp_path: Path, failure: str) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until(lambda: failure in chat.notice)
        await chat.until_shown(f"■ {failure}")
        assert "some text" in chat.shown

    run_chat(tmp_path, ScriptedLink([[TextDelta("some text"), Failure(failure)]]), use)


def test_an_answer_that_hit_its_limit_says_so(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until(lambda: "after 7 tokens by its limit" in chat.notice)

    run_chat(tmp_path, ScriptedLink([[TextDelta("x"), Usage(3, 7), Done("length")]]), use)


def test_an_earlier_conversation_is_opened_from_the_list(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("about bees")
        await chat.until_shown("First.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+n")
        assert chat.app.chat.query_one("#welcome", Static).display
        await chat.say("about ants")
        await chat.until_shown("Second.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+o")
        await chat.until(lambda: isinstance(chat.app.screen, ConversationScreen))
        options = chat.app.screen.query_one(OptionList)
        assert options.option_count == 2
        await chat.pilot.press(*"bees", "enter")
        await chat.until_shown("First.")
        assert "about bees" in chat.shown and "Second." not in chat.shown

    run_chat(tmp_path, ScriptedLink([answer_of("First."), answer_of("Second.")]), use)


def test_history_is_there_after_a_restart(tmp_path: Path) -> None:
    async def first(chat: Chat) -> None:
        await chat.say("remember me")
        await chat.until_shown("I do.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+q")

    async def second(chat: Chat) -> None:
        await chat.until(lambda: bool(chat.prompt._history))
        await chat.pilot.press("up")
        assert chat.prompt.text == "remember me"
        await chat.pilot.press("ctrl+o")
        await chat.until(lambda: isinstance(chat.app.screen, ConversationScreen))
        await chat.pilot.press("enter")
        await chat.until_shown("I do.")

    app = run_chat(tmp_path, ScriptedLink([answer_of("I do.")]), first)
    assert app.return_value == 0
    run_chat(tmp_path, ScriptedLink([answer_of("x")]), second)


def test_without_a_model_the_chooser_opens_and_its_choice_is_loaded(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.until(lambda: isinstance(chat.app.screen, ModelScreen))
        await chat.pilot.press("down", "enter")
        await chat.until(lambda: "other-model · ready" in chat.status)
        assert chat.link.selected == ["other-model"]

    choosing = [LinkState(Phase.CHOOSING)]
    run_chat(tmp_path, ScriptedLink([answer_of("x")], first_states=choosing), use, ChatOptions())


def test_the_model_can_be_changed_between_two_turns(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("one")
        await chat.until_shown("First.")
        await chat.until_idle()
        await chat.pilot.press("f2")
        await chat.until(lambda: isinstance(chat.app.screen, ModelScreen))
        await chat.pilot.press(*"other", "enter")
        await chat.until(lambda: "other-model · ready" in chat.status)
        await chat.say("two")
        await chat.until_shown("other-model · ")

    run_chat(tmp_path, ScriptedLink([answer_of("First.")]), use)


def test_a_reader_who_scrolled_up_is_left_alone_and_told_of_new_lines(tmp_path: Path) -> None:
    gate = asyncio.Event()
    first = "\n\n".join(f"paragraph {i}" for i in range(40))

    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("paragraph 39")
        await chat.pilot.press("pageup")
        before = chat.shown
        assert "paragraph 39" not in before
        gate.set()
        below = chat.app.chat.query_one("#below", Static)
        await chat.until(lambda: below.display)
        await chat.until_idle()
        assert chat.shown.splitlines()[:20] == before.splitlines()[:20]
        assert "new line" in str(below.content)
        await chat.pilot.press("ctrl+end")
        await chat.until_shown("added 9")
        await chat.until(lambda: not below.display)

    added = "".join(f"\n\nadded {i}" for i in range(10))
    run_chat(tmp_path, ScriptedLink([[TextDelta(first), gate, TextDelta(added), Done("stop")]]), use)


def test_escape_sequences_of_a_model_are_shown_not_sent(tmp_path: Path) -> None:
    hostile = "a\x1b]0;title\x07b\x9b31mc\u202ed `\x1b[2J` \n\n```\x1b]52;c;eA==\x07\n\x1bc\n```\n"

    async def use(chat: Chat) -> None:
        await chat.say("go\x1b]0;x\x07")
        await chat.until_shown("\\x1b]0;title\\x07b\\x9b31mc\\u202ed")
        await chat.until_idle()
        svg = chat.app.export_screenshot()
        for text in (chat.shown, svg):
            assert not any(c in text for c in "\x1b\x07\x9b\u202e")

    run_chat(tmp_path, ScriptedLink([answer_of(hostile), []]), use)


def test_the_copy_key_says_where_the_answer_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlocal.chat.clipboard.system_tool", lambda _environment: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def use(chat: Chat) -> None:
        await chat.pilot.press("ctrl+y")
        assert "no answer to copy" in chat.notice
        await chat.say("go")
        await chat.until_shown("Take this.")
        await chat.until_idle()
        await chat.pilot.press("ctrl+y")
        await chat.until(lambda: "written to" in chat.notice)

    run_chat(tmp_path, ScriptedLink([answer_of("Take this.")]), use)
    assert next(tmp_path.glob("qlocal-answer-*.md")).read_text() == "Take this."


def test_ctrl_c_copies_a_selection_and_otherwise_stops_but_never_quits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlocal.chat.clipboard.system_tool", lambda _environment: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("begun")
        chat.prompt.text = "draft"
        chat.prompt.select_all()
        await chat.pilot.press("ctrl+c")
        await chat.until(lambda: "written to" in chat.notice)
        assert "■ stopped" not in chat.shown
        chat.prompt.text = ""
        await chat.pilot.press("ctrl+c")
        await chat.until_shown("■ stopped")
        assert chat.app.return_code is None

    run_chat(tmp_path, ScriptedLink([[TextDelta("begun"), asyncio.Event()]]), use)
    assert next(tmp_path.glob("qlocal-answer-*.md")).read_text() == "draft"


def test_a_damaged_history_is_said_when_the_chat_opens(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite3").write_bytes(b"nonsense" * 1000)

    async def use(chat: Chat) -> None:
        await chat.until(lambda: "damaged" in chat.notice)

    run_chat(tmp_path, ScriptedLink([answer_of("x")]), use)


def test_a_history_that_cannot_be_opened_ends_the_chat_with_its_reason(tmp_path: Path) -> None:
    connection, _ = open_database(tmp_path / "history.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    async def use(chat: Chat) -> None:
        await chat.until(lambda: chat.app.failure is not None)

    app = run_chat(tmp_path, ScriptedLink([answer_of("x")]), use)
    assert app.failure is not None and "schema 99" in str(app.failure)


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (160, 50)])
def test_any_size_of_terminal_shows_the_answer_and_the_status(tmp_path: Path, size: tuple[int, int]) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("the end")
        await chat.until_idle()
        await chat.pilot.resize_terminal(size[0] - 20, size[1])
        await chat.until_shown("the end")

    text = "word " * 100 + "\n\n| a | b |\n|--|--|\n| 中文 | 1 |\n\nthe end"
    run_chat(tmp_path, ScriptedLink([answer_of(text, pieces=50)]), use, size=size)


@pytest.mark.parametrize("width", [61, 80, 97])
def test_no_character_is_lost_under_the_scrollbar(tmp_path: Path, width: int) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("the-end")
        await chat.until_idle()
        assert chat.shown.count("X") == 400

    # More than a screen, so that there is a scrollbar; no blanks, so that lines are filled to their last column.
    run_chat(tmp_path, ScriptedLink([answer_of("above\n\n" * 40 + "X" * 400 + " the-end")]), use, size=(width, 40))


def test_leaving_while_an_answer_is_written_ends_well_and_keeps_it(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("begun")
        await chat.pilot.press("ctrl+q")

    app = run_chat(tmp_path, ScriptedLink([[TextDelta("begun"), asyncio.Event()]]), use)
    assert app.return_value == 0
    history = stored(tmp_path)
    assert history.branch(history.conversations()[0].conversation_id)[-1].content == "begun"


def test_no_end_of_a_line_stands_under_the_bar_that_scrolls(tmp_path: Path) -> None:
    text = " ".join("x" * (1 + 7 * number % 11) for number in range(900))

    async def use(chat: Chat) -> None:
        transcript = chat.app.chat.query_one(Transcript)
        await chat.say("go")
        await chat.until_idle()
        assert transcript.show_vertical_scrollbar
        room = transcript.scrollable_content_region.width
        assert room - 8 < max(map(len, chat.shown.splitlines())) <= room

    run_chat(tmp_path, ScriptedLink([answer_of(text, 40)]), use, size=(80, 24))
