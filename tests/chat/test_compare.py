"""Several models answer one prompt: one after the other on one engine, in columns, kept as branches."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from textual.widgets import SelectionList, Static

from qlocal.chat.events import Done, TextDelta, ThinkingDelta, ToolCallDelta
from qlocal.chat.features.structured import Structured
from qlocal.chat.features.tools import Tools
from qlocal.chat.link_state import Choice, LinkState, Phase, Variant
from qlocal.chat.screens.compare import CompareChoice, CompareScreen
from qlocal.chat.store.records import MessageState
from qlocal.chat.tools.calculator import Calculator
from qlocal.chat.widgets.transcript import Transcript
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of

MODELS = [Choice("other-model"), Choice("tiny-model"), Choice("third"), Choice("far", "qlocal pull far", is_here=False)]


async def begin(chat: Chat, *down: int, prompt: str = "Which is best?") -> CompareScreen:
    """Compare the current model with those so many lines further down the list."""
    chat.prompt.text = prompt
    await chat.pilot.press("f6")
    await chat.until(lambda: isinstance(chat.app.screen, CompareChoice))
    for lines in down:
        await chat.pilot.press(*["down"] * lines, "space")
    await chat.pilot.press("enter")
    await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
    screen = chat.app.screen
    assert isinstance(screen, CompareScreen)
    await chat.until(screen.is_drawn.is_set)
    return screen


def column(screen: CompareScreen, idx: int) -> str:
    transcript = screen.query_one(f"#column-{idx}", Transcript)
    return "\n".join(transcript.render_line(y).text.rstrip() for y in range(transcript.size.height)).strip()


def test_models_answer_side_by_side_and_one_answer_is_gone_on_with(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of("I am tiny."), answer_of("I am other."), answer_of("I am third.")], models=MODELS)

    async def use(chat: Chat) -> None:
        screen = await begin(chat, 1, 1)
        await chat.until(lambda: "I am third." in column(screen, 2))
        assert "I am tiny." in column(screen, 0) and "I am other." in column(screen, 1)
        assert column(screen, 1).startswith("other-model · ") and "42.5 tok/s" in column(screen, 1)
        await chat.until(lambda: "goes on with this answer" in str(screen.query_one("#keys", Static).content))
        await chat.until(lambda: link.selected == ["other-model", "third", "tiny-model"])
        await chat.pilot.press("right", "enter")
        await chat.until_shown("I am other.")
        assert "‹2/3›" in chat.shown and "▌ Which is best?" in chat.shown
        assert chat.prompt.text == "" and "tiny-model · ready" in chat.status

    run_chat(tmp_path, link, use, size=(120, 30))
    assert link.requests == [[{"role": "user", "content": "Which is best?"}]] * 3
    history = stored(tmp_path)
    answer = history.branch(history.conversations()[0].conversation_id)[-1]
    assert (answer.content, answer.model, answer.siblings) == ("I am other.", "other-model", 3)


def test_without_a_new_prompt_the_last_one_is_answered_again(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of("First."), answer_of("Second."), answer_of("Third.")], models=MODELS)

    async def use(chat: Chat) -> None:
        await chat.pilot.press("f6")
        assert "Write what the models shall answer" in chat.notice
        await chat.say("one")
        await chat.until_shown("First.")
        await chat.until_idle()
        screen = await begin(chat, 1, prompt="")
        await chat.until(lambda: "Third." in column(screen, 1))
        await chat.until(lambda: not screen._is_running)
        await chat.pilot.press("escape")
        await chat.until_shown("‹3/3›")

    run_chat(tmp_path, link, use)
    assert link.requests == [[{"role": "user", "content": "one"}]] * 3


def test_all_are_asked_as_the_conversation_asks_with_its_tools_its_form_and_what_was_pasted(tmp_path: Path) -> None:
    call = [ToolCallDelta(0, '{"expression": "6*7"}', "c1", "calculator"), Done("tool_calls")]
    link = ScriptedLink([call, answer_of("42"), [ThinkingDelta("Hm."), *answer_of("I know.")]], models=MODELS)

    async def use(chat: Chat) -> None:
        desk = chat.app.chat.desk
        desk.feature(Tools)._tools = {"calculator": Calculator()}
        await desk.session.change_system("Be brief.")
        await desk.session.change_sampling({"temperature": 0.2})
        desk.feature(Structured)._use("number", {"type": "integer"})
        chat.prompt.attach("six by seven " * 100)
        screen = await begin(chat, 1, prompt=chat.prompt.text + " what?")
        await chat.until(lambda: "I know." in column(screen, 1))
        assert "42" in column(screen, 0) and "calculator" in column(screen, 0)
        await chat.until(lambda: not screen._is_running)

    run_chat(tmp_path, link, use)
    assert len(link.requests) == 3, "the first model called a tool and went on"
    for request, options in zip(link.requests, link.options, strict=True):
        assert request[0] == {"role": "system", "content": "Be brief."}
        assert request[1]["content"].count("six by seven") == 100
        assert options["temperature"] == 0.2 and options["seed"] == link.options[0]["seed"]
        assert options["response_format"]["json_schema"]["name"] == "number"
        assert options["tools"][0]["function"]["name"] == "calculator"
    history = stored(tmp_path)
    answer = history.branch(history.conversations()[0].conversation_id)[-1]
    assert answer.meta["asked"]["seed"] == link.options[0]["seed"]


def test_variants_that_lie_beside_the_model_can_be_compared_by_their_files(tmp_path: Path) -> None:
    ready = LinkState(Phase.READY, "tiny-model", path="/m/tiny", max_context=4096)
    at_hand = [
        Variant("tiny-model", "/m/tiny", "awq", 1 << 30, True, True),
        Variant("tiny-q4", "/m/tiny-q4.gguf", "gguf", 1 << 29, False, True),
    ]
    answers = [answer_of("Awq."), answer_of("Gguf.")]
    link = ScriptedLink(answers, first_states=[ready], models=[], at_hand=at_hand)

    async def use(chat: Chat) -> None:
        screen = await begin(chat, 1)
        await chat.until(lambda: "Gguf." in column(screen, 1))
        assert column(screen, 1).startswith("tiny-q4") or "/m/tiny-q4.gguf" in column(screen, 1)
        await chat.until(lambda: link.selected == ["/m/tiny-q4.gguf", "/m/tiny"])

    run_chat(tmp_path, link, use)


def test_fewer_than_two_models_are_not_compared(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        chat.prompt.text = "x"
        await chat.pilot.press("f6")
        await chat.until(lambda: isinstance(chat.app.screen, CompareChoice))
        options = chat.app.screen.query_one(SelectionList)
        await chat.until(lambda: options.option_count == 3)
        assert [str(options.get_option_at_index(i).prompt) for i in range(options.option_count)] == [
            "tiny-model",
            "other-model",
            "third",
        ]
        await chat.pilot.press("enter")
        await chat.pilot.pause()
        assert "two to 6 models" in str(chat.app.screen.query_one("#said", Static).content)
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)
        assert chat.prompt.text == "x"

    run_chat(tmp_path, ScriptedLink([answer_of("x")], models=MODELS), use)


def test_escape_stops_the_comparison_keeps_what_came_and_brings_the_model_back(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of("I am tiny."), [TextDelta("half"), asyncio.Event()]], models=MODELS)

    async def use(chat: Chat) -> None:
        screen = await begin(chat, 1)
        await chat.until(lambda: "half" in column(screen, 1))
        await chat.pilot.press("escape")
        await chat.until(lambda: "■ stopped" in column(screen, 1) and not screen._is_running)
        await chat.until(lambda: link.selected == ["other-model", "tiny-model"])
        await chat.pilot.press("escape")
        await chat.until_shown("half")
        assert "‹2/2›" in chat.shown

    run_chat(tmp_path, link, use)
    history = stored(tmp_path)
    answer = history.branch(history.conversations()[0].conversation_id)[-1]
    assert (answer.content, answer.state) == ("half", MessageState.STOPPED)


def test_a_model_that_cannot_be_loaded_says_so_in_its_column_and_the_others_answer(tmp_path: Path) -> None:
    class Refusing(ScriptedLink):
        async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
            self.selected.append(model)
            phase, error = (Phase.FAILED, "no room") if model == "other-model" else (Phase.READY, None)
            self.push(LinkState(phase, model, error=error, max_context=4096))

    answers: list[Any] = [answer_of("I am tiny."), answer_of("I am third.")]
    link = Refusing(answers, models=MODELS)

    async def use(chat: Chat) -> None:
        screen = await begin(chat, 1, 1)
        await chat.until(lambda: "I am third." in column(screen, 2))
        assert "could not be loaded" in column(screen, 1)
        await chat.until(lambda: not screen._is_running)
        await chat.pilot.press("right", "enter")  # there is nothing to go on with
        await chat.pilot.pause()
        assert chat.app.screen is screen

    run_chat(tmp_path, link, use, size=(120, 30))
