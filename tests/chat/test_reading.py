"""Moving through a conversation and taking text out of it: the cursor, the mouse, the copy keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from qlocal.chat.widgets.transcript import Transcript
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of

ANSWER = "A first paragraph.\n\n- one\n- two\n\n```py\nx = 1\ny = 2\n```\n\nThe 中文字 end."


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What the last copy took; it has only a file to go to."""
    monkeypatch.setattr("qlocal.chat.clipboard.system_tool", lambda _environment: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def read() -> str:
        return max(tmp_path.glob("qlocal-answer-*.md"), key=lambda path: path.stat().st_mtime_ns).read_text()

    return read


def with_answer(tmp_path: Path, use: Callable[[Chat], Awaitable[None]], answer: str = ANSWER, width: int = 80) -> None:
    async def ask_and_use(chat: Chat) -> None:
        await chat.say("ask me")
        await chat.until_shown("end.")
        await chat.until_idle()
        await use(chat)

    run_chat(tmp_path, ScriptedLink([answer_of(answer)]), ask_and_use, size=(width, 30))


async def copy(chat: Chat, key: str) -> None:
    chat.app.chat.desk.notice.clear()
    await chat.pilot.press(key)
    await chat.until(lambda: "written to" in chat.notice)


def marked(chat: Chat) -> list[str]:
    """The lines that the cursor is on."""
    return [line[1:].strip() for line in chat.shown.splitlines() if line.startswith("┃")]


def test_the_cursor_walks_blocks_and_copies_what_they_were_written_as(
    tmp_path: Path, copied: Callable[[], str]
) -> None:
    async def use(chat: Chat) -> None:
        assert marked(chat) == []
        for lines, source in [
            (["The 中文字 end."], "The 中文字 end."),
            (["py", "x = 1", "y = 2"], "x = 1\ny = 2\n"),
            (["• one", "• two"], "- one\n- two"),
            (["A first paragraph."], "A first paragraph."),
            (["ask me"], "ask me"),
        ]:
            await chat.pilot.press("alt+up")
            assert marked(chat) == lines
            await copy(chat, "alt+c")
            assert copied() == source
        await chat.pilot.press("alt+up")
        assert marked(chat) == ["ask me"], "there is nothing above"
        await chat.pilot.press("alt+down")
        assert marked(chat) == ["A first paragraph."]
        await copy(chat, "ctrl+y")
        assert copied() == ANSWER
        await chat.pilot.press("escape")
        assert marked(chat) == []

    with_answer(tmp_path, use)


def test_without_a_cursor_the_last_code_is_copied(tmp_path: Path, copied: Callable[[], str]) -> None:
    async def use(chat: Chat) -> None:
        await copy(chat, "alt+c")
        assert copied() == "x = 1\ny = 2\n"

    with_answer(tmp_path, use)


def test_the_cursor_steps_by_messages_and_stays_when_another_comes(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        transcript = chat.app.chat.query_one(Transcript)
        await chat.pilot.press("alt+pageup")
        assert marked(chat) == ["A first paragraph."]
        await chat.pilot.press("alt+pageup")
        assert marked(chat) == ["ask me"]
        entry = transcript.cursor_entry
        assert entry is not None and entry.text == "ask me"
        await chat.say("again")
        await chat.until(lambda: len(transcript.entries) == 4)
        await chat.until_idle()
        assert transcript.cursor_entry is not None and transcript.cursor_entry.entry_id == entry.entry_id

    with_answer(tmp_path, use)


async def drag(chat: Chat, start: str, end: str) -> None:
    """Drag from the first character of one text to the last of another."""
    transcript = chat.app.chat.query_one(Transcript)
    lines = [transcript.render_line(y).text for y in range(transcript.size.height)]

    def cell(text: str, shift: int) -> tuple[int, int]:
        y = next(i for i, line in enumerate(lines) if text in line)
        return cell_len(lines[y][: lines[y].index(text) + shift]) + transcript.content_region.x, y

    await chat.pilot.mouse_down(offset=cell(start, 0))
    await chat.pilot.hover(offset=cell(end, 1))
    await chat.pilot.hover(offset=cell(end, len(end) - 1))
    await chat.pilot.mouse_up(offset=cell(end, len(end) - 1))


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ("first", "paragraph", "first paragraph"),
        # From the later to the earlier one: a selection has no direction.
        ("paragraph", "first", "t p"),
        ("中文字", "end", "中文字 end"),
        ("one", "two", "one\n• two"),
        ("x = 1", "y = 2", "x = 1\ny = 2"),
        ("me", "first", "me\n\ntiny-model · 17 tokens · 42.5 tok/s\nA first"),
    ],
)
def test_the_mouse_selects_what_is_read(
    tmp_path: Path, copied: Callable[[], str], start: str, end: str, text: str
) -> None:
    async def use(chat: Chat) -> None:
        await drag(chat, start, end)
        await copy(chat, "ctrl+c")
        assert copied() == text

    with_answer(tmp_path, use)


def test_a_selected_paragraph_has_no_line_ends_of_the_screen(tmp_path: Path, copied: Callable[[], str]) -> None:
    words = " ".join(f"word{i}" for i in range(40)) + " end."

    async def use(chat: Chat) -> None:
        await drag(chat, "word0", "end.")
        await copy(chat, "ctrl+c")
        assert copied() == words

    with_answer(tmp_path, use, words, width=60)


def test_two_clicks_take_a_word_and_three_its_block(tmp_path: Path, copied: Callable[[], str]) -> None:
    async def use(chat: Chat) -> None:
        transcript = chat.app.chat.query_one(Transcript)
        y = next(y for y in range(30) if "first" in transcript.render_line(y).text)
        await chat.pilot.click(Transcript, offset=(7, y), times=2)
        await copy(chat, "ctrl+c")
        assert copied() == "first"
        await chat.pilot.click(Transcript, offset=(7, y), times=3)
        await copy(chat, "ctrl+c")
        assert copied() == "A first paragraph."

    with_answer(tmp_path, use)


def test_a_click_unfolds_a_thought(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        transcript = chat.app.chat.query_one(Transcript)
        y = next(y for y in range(30) if "▸ Thought" in transcript.render_line(y).text)
        await chat.pilot.click(Transcript, offset=(6, y))
        assert "│ because" in chat.shown

    with_answer(tmp_path, use, "<think>\nbecause\n</think>\n\nend.")


def test_messages_in_the_middle_of_a_selection_are_copied_as_their_source(
    tmp_path: Path, copied: Callable[[], str]
) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("and again")
        await chat.until(lambda: len(chat.app.chat.query_one(Transcript).entries) == 4)
        await chat.until_idle()
        await drag(chat, "ask me", "and again")
        await copy(chat, "ctrl+c")
        parts = copied().split("A **short** one.\n\nThe end.")
        assert len(parts) == 2 and parts[0].startswith("ask me\n\ntiny-model") and parts[1].endswith("and again")

    with_answer(tmp_path, use, "A **short** one.\n\nThe end.")
