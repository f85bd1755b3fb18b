"""The alternatives view: tokens that come with an answer, their heat map, and going on from another one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from textual.widgets import Static

from qlocal.chat.events import Done, Logprobs, TextDelta
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.logprobs import unpack
from qlocal.chat.screens.alternatives import AlternativesScreen
from qlocal.chat.widgets.token_view import TokenView
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of, scored, scored_answer

TOKENS = scored(
    {"The": 0.99, "A": 0.01},
    {" cat": 0.5, " dog": 0.3, " bird": 0.1},
    {" sat": 0.2, " ran": 0.7},
    {".": 0.9, "!": 0.05},
)


async def open_view(chat: Chat) -> AlternativesScreen:
    await chat.pilot.press("f4")
    await chat.until(lambda: isinstance(chat.app.screen, AlternativesScreen))
    screen = chat.app.screen
    assert isinstance(screen, AlternativesScreen)
    await chat.until(lambda: "Token 1 " in panel(screen))
    return screen


async def answered(chat: Chat, text: str = "The cat sat.") -> None:
    await chat.say("go")
    await chat.until_shown(text)
    await chat.until_idle()


def panel(screen: AlternativesScreen) -> str:
    return str(screen.query_one("#panel", Static).content)


def drawn(screen: AlternativesScreen) -> str:
    view = screen.query_one(TokenView)
    return "\n".join(view.render_line(y).text.rstrip() for y in range(view.size.height)).rstrip()


def test_the_cursor_walks_the_tokens_and_shows_what_else_could_have_stood_there(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await answered(chat)
        screen = await open_view(chat)
        assert drawn(screen) == "The cat sat."
        assert "Token 1 of 4" in panel(screen) and "99.0%" in panel(screen)
        await chat.pilot.press("right")
        await chat.until(lambda: "Token 2 of 4" in panel(screen))
        lines = panel(screen).splitlines()
        assert [line.split("%")[0].strip(" ›") for line in lines[1:]] == ["50.0", "30.0", "10.0"]
        assert "·cat  ← written" in lines[1] and lines[2].startswith("›") and "others 10.0%" in lines[0]
        assert "entropy ≥ 1.69 bits" in lines[0]
        await chat.pilot.press("end", "escape")
        await chat.until_shown("The cat sat.")

    run_chat(tmp_path, ScriptedLink([scored_answer(TOKENS)]), use)


def test_unsure_tokens_are_jumped_to_and_the_heat_map_is_a_toggle(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await answered(chat)
        screen = await open_view(chat)
        view = screen.query_one(TokenView)

        def coloured() -> list[bool]:
            return [bool(s.style and s.style.bgcolor and not s.style.reverse) for s in view.render_line(0)][:4]

        before = coloured()
        await chat.pilot.press("h", "n")
        await chat.until(lambda: view.cursor == 1)
        assert coloured() != before and coloured()[2]
        await chat.pilot.press("n")
        await chat.until(lambda: view.cursor == 2)
        await chat.pilot.press("n", "p")
        await chat.until(lambda: view.cursor == 1)
        await chat.pilot.press("h", "home")
        await chat.until(lambda: view.cursor == 0)
        assert coloured() == before

    run_chat(tmp_path, ScriptedLink([scored_answer(TOKENS)]), use)


def test_enter_on_an_alternative_forks_there_and_the_model_goes_on(tmp_path: Path) -> None:
    going_on = [TextDelta(" ran away."), Logprobs(tuple(scored({" ran away.": 0.8}))), Done("stop")]

    async def use(chat: Chat) -> None:
        await answered(chat)
        await open_view(chat)
        await chat.pilot.press("right", "down", "enter")
        await chat.until_shown("The bird ran away.")
        await chat.until_idle()
        assert "‹2/2›" in chat.shown
        ids = [sum(b"The"), sum(b" bird")]
        assert chat.link.options[-1]["answer_start_ids"] == ids
        assert chat.link.requests[-1] == [{"role": "user", "content": "go"}]
        await chat.pilot.press("alt+left")
        await chat.until_shown("The cat sat.")
        await chat.pilot.press("alt+right")
        await chat.until_shown("The bird ran away.")
        # The new branch knows its tokens too, those that it was begun with included.
        screen = await open_view(chat)
        assert drawn(screen) == "The bird ran away." and "Token 1 of 3" in panel(screen)

    run_chat(tmp_path, ScriptedLink([scored_answer(TOKENS), going_on]), use)


def test_the_cursor_chooses_whose_tokens_are_seen_and_a_fork_there_leaves_what_came_behind(tmp_path: Path) -> None:
    later = scored({"Later": 0.6, "Sooner": 0.4})
    going_on = [TextDelta(" ran."), Logprobs(tuple(scored({" ran.": 0.8}))), Done("stop")]

    async def use(chat: Chat) -> None:
        await answered(chat)
        await answered(chat, "Later")
        await chat.pilot.press("alt+pageup", "alt+pageup", "alt+pageup")  # the first answer
        screen = await open_view(chat)
        assert drawn(screen) == "The cat sat."
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)
        await chat.pilot.press("alt+pageup")  # the first question: its answer is meant
        screen = await open_view(chat)
        assert drawn(screen) == "The cat sat."
        await chat.pilot.press("right", "down", "enter")
        await chat.until_shown("The bird ran.")
        await chat.until_idle()
        assert "Later" not in chat.shown and chat.link.requests[-1] == [{"role": "user", "content": "go"}]
        await chat.pilot.press("alt+pagedown", "alt+left")  # from the question to its answer, and to the other one
        await chat.until_shown("Later")

    run_chat(tmp_path, ScriptedLink([scored_answer(TOKENS), scored_answer(later), going_on]), use)


def test_a_stopped_answer_keeps_the_tokens_it_has(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_shown("The cat")
        await chat.pilot.press("escape")
        await chat.until_shown("■ stopped")
        await chat.until_idle()
        assert drawn(await open_view(chat)) == "The cat"

    events = [*scored_answer(TOKENS[:2])[:-1], asyncio.Event()]
    run_chat(tmp_path, ScriptedLink([events]), use)


def test_an_answer_without_tokens_is_scored_once_and_kept(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of("The cat sat.")], scores=(TOKENS,))

    async def use(chat: Chat) -> None:
        await answered(chat)
        for _ in range(2):
            assert drawn(await open_view(chat)) == "The cat sat."
            await chat.pilot.press("escape")
            await chat.until_shown("The cat sat.")

    run_chat(tmp_path, link, use)
    assert link.scored == [([{"role": "user", "content": "go"}], "The cat sat.", 5)]
    history = stored(tmp_path)
    answer = history.branch(history.conversations()[0].conversation_id)[-1]
    packed = history.logprobs(answer.message_id)
    assert packed is not None and [t.chosen.raw for t in unpack(packed)] == [t.chosen.raw for t in TOKENS]


def test_a_server_that_cannot_tell_is_said(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.pilot.press("f4")
        assert "no answer yet" in chat.notice
        await answered(chat)
        await chat.pilot.press("f4")
        await chat.until(lambda: "Nothing is known of this answer's tokens" in chat.notice)

    run_chat(tmp_path, ScriptedLink([answer_of("The cat sat.")], is_own=False), use)


def test_stored_tokens_are_seen_while_no_model_is_loaded(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await answered(chat)
        chat.link.push(LinkState(Phase.FAILED, "m", error="gone"))
        await chat.until(lambda: "gone" in chat.notice)
        assert drawn(await open_view(chat)) == "The cat sat."

    run_chat(tmp_path, ScriptedLink([scored_answer(TOKENS)]), use)


def test_escape_sequences_in_tokens_are_shown_not_sent(tmp_path: Path) -> None:
    hostile = scored({"\x1b]0;t\x07": 0.5, "\x9b31m\u202e": 0.4}, {"\n\x1b[2J": 0.9, "\u200f": 0.1})

    async def use(chat: Chat) -> None:
        await chat.say("go")
        await chat.until_idle()
        screen = await open_view(chat)
        for _ in hostile:
            for text in (drawn(screen), panel(screen), chat.app.export_screenshot()):
                assert not any(c in text for c in "\x1b\x07\x9b\u202e")
            await chat.pilot.press("right")
        assert "\\x1b]0;t\\x07" in drawn(screen)

    run_chat(tmp_path, ScriptedLink([scored_answer(hostile)]), use)


def test_long_answers_are_walked_by_line_and_page(tmp_path: Path) -> None:
    tokens = scored(*({f" word{i}": 0.9, " other": 0.05} for i in range(600)))

    async def use(chat: Chat) -> None:
        await answered(chat, "word599")
        screen = await open_view(chat)
        view = screen.query_one(TokenView)
        await chat.pilot.press("j")
        line_of = view._layout.line_of
        await chat.until(lambda: line_of[view.cursor] == 1)
        await chat.pilot.press("k", "pagedown", "pagedown")
        await chat.until(lambda: line_of[view.cursor] == 2 * view.page_lines)
        await chat.pilot.press("pageup", "end")
        await chat.until(lambda: view.cursor == 599)
        assert "word599" in drawn(screen) and "word0" not in drawn(screen)
        await chat.pilot.resize_terminal(60, 20)
        await chat.until(lambda: "word599" in drawn(screen))

    run_chat(tmp_path, ScriptedLink([scored_answer(tokens)]), use)
