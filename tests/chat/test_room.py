"""Nothing is ever dropped in silence: what is offered where a conversation does not fit, and how one asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets import OptionList, Static

from qlocal.chat.features.tools import Tools
from qlocal.chat.link_state import LinkState, Phase, ShownPlan
from qlocal.chat.sampling import parse_sampling
from qlocal.chat.screens.facts import FactsScreen
from qlocal.chat.screens.picker import Picker
from qlocal.chat.tools.calculator import Calculator
from qlocal.chat.widgets.look import look_of
from qlocal.chat.widgets.transcript import Transcript
from qlocal.errors import UsageError
from tests.chat.driving import Chat, run_chat, stored
from tests.chat.scripted import ScriptedLink, answer_of


async def talk(chat: Chat, *texts: str) -> None:
    for text in texts:
        await chat.say(text)
        await chat.until_shown(f"▌ {text}")
        await chat.until_idle()


def asked(chat: Chat) -> bool:
    screen = chat.app.screen
    return isinstance(screen, Picker) and any(shown.option_count for shown in screen.query(OptionList))


def offers(chat: Chat) -> list[str]:
    shown = chat.app.screen.query_one(OptionList)
    return [str(shown.get_option_at_index(i).prompt) for i in range(shown.option_count)]


def facts(chat: Chat) -> list[str]:
    screen = chat.app.screen
    rows = screen.query("#rows").results(Static) if isinstance(screen, FactsScreen) else []
    return [line for one in rows for line in str(one.content).splitlines()]


def full_link() -> ScriptedLink:
    """Every message has 1,000 tokens, and 4,096 fit: one turn goes, the second's message does, the third's not."""
    ready = LinkState(Phase.READY, "tiny-model", max_context=4096, path="/models/tiny")
    plans = {"/models/tiny": ShownPlan(["cache  1.00 GiB"], [])}
    return ScriptedLink([answer_of("Yes.")], first_states=[ready], per_message=1000, plans=plans)


async def overfill(chat: Chat) -> None:
    await talk(chat, "one", "two")
    await chat.say("three")
    await chat.until(lambda: asked(chat))
    assert len(chat.link.requests) == 2


def run(tmp_path: Path, use: Callable[[Chat], object], size: tuple[int, int] = (80, 30)) -> ScriptedLink:
    link = full_link()
    run_chat(tmp_path, link, use, size=size)  # type: ignore[arg-type]
    return link


def test_nothing_is_sent_and_nothing_dropped_where_nothing_was_chosen(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await overfill(chat)
        assert offers(chat)[-1] == "Send nothing"
        await chat.pilot.press("escape")
        await chat.until_idle()
        assert len(chat.link.requests) == 2
        assert "5,000" in chat.notice and "4,096" in chat.notice

    run(tmp_path, use, size=(60, 15))
    history = stored(tmp_path)
    branch = history.branch(history.conversations()[0].conversation_id)
    assert [m.content for m in branch] == ["one", "Yes.", "two", "Yes.", "three"]
    assert not any(m.is_left_out for m in branch)


def test_turns_that_are_left_out_stay_in_the_history_and_can_be_sent_again(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await overfill(chat)
        assert offers(chat)[0] == "Leave out the 1 oldest turns; they stay in the history  leaves 3,000 tokens"
        await chat.pilot.press("enter")
        await chat.until(lambda: len(chat.link.requests) == 3)
        await chat.until_idle()
        assert [m["content"] for m in chat.link.requests[2]] == ["two", "Yes.", "three"]
        branch = chat.app.chat.desk.session.branch
        assert [m.content for m in branch if m.is_left_out] == ["one", "Yes."] and len(branch) == 6
        await chat.say("/send-all")
        await chat.until(lambda: "sent again" in chat.notice)
        assert len(chat.app.chat.desk.session.request()) == 5

    run(tmp_path, use)


def test_what_is_left_out_is_dimmed_and_says_so(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await talk(chat, "first", "second")
        desk = chat.app.chat.desk
        before = colours(chat)
        await desk.session.leave_out([message.message_id for message in desk.session.branch[:2]])
        desk.show_branch()
        await chat.until_shown("You · no longer sent")
        muted = look_of(chat.app.theme_variables).palette.muted.color
        after = colours(chat)
        assert after["first"] == muted != before["first"], "the question is quieter"
        assert after["second"] == before["second"]

    run_chat(tmp_path, ScriptedLink([answer_of("said")]), use, size=(80, 30))


def colours(chat: Chat) -> dict[str, object]:
    transcript = chat.app.chat.query_one(Transcript)
    segments = [segment for y in range(transcript.size.height) for segment in transcript.render_line(y)]
    return {one.text.strip(): one.style.color for one in segments if one.style is not None}


def test_the_limit_is_raised_after_its_price_was_shown(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await overfill(chat)
        assert offers(chat)[2] == "Load the model with a context of 8,192 tokens"
        await chat.pilot.press("down", "down", "enter")
        await chat.until(lambda: isinstance(chat.app.screen, FactsScreen))
        await chat.pilot.press("enter")
        await chat.until(lambda: len(chat.link.requests) == 3)
        assert len(chat.link.requests[2]) == 5 and chat.link.selected == ["/models/tiny"]

    run(tmp_path, use)


def test_a_message_that_is_too_long_by_itself_is_never_cut(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        chat.link.per_message = 9000
        await chat.say("long")
        await chat.until(lambda: asked(chat))
        assert not any("oldest turns" in offer for offer in offers(chat))

    run(tmp_path, use)


def test_system_message_and_sampling_are_the_conversations_own(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await chat.say("/system Be brief.")
        await chat.until(lambda: "is changed" in chat.notice)
        await chat.say("/sampling temperature=0.2 seed=7")
        await chat.until(lambda: "temperature 0.2, seed 7" in chat.notice)
        await talk(chat, "one")
        assert chat.link.requests[0][0] == {"role": "system", "content": "Be brief."}
        assert chat.link.options[0] == {"temperature": 0.2, "seed": 7}
        await chat.say("/sampling recommended")
        await chat.until(lambda: "recommend" in chat.notice)
        await chat.say("/system -")
        await chat.until(lambda: "no system message" in chat.notice)
        await talk(chat, "two")
        assert chat.link.requests[1][0]["role"] == "user" and "temperature" not in chat.link.options[1]
        await chat.pilot.press("ctrl+n")
        assert chat.app.chat.desk.session.sampling == {}

    run_chat(tmp_path, ScriptedLink([answer_of("Yes.")]), use)
    conversation = stored(tmp_path).conversations()[0]
    assert conversation.system is None and conversation.sampling == {}


@pytest.mark.parametrize("text", ["temperatur=1", "temperature", "temperature=9", "top_k=x", "seed=nan"])
def test_sampling_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=text.partition("=")[0]):
        parse_sampling(text)


def test_the_ledger_tells_what_every_message_takes_and_what_is_free(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await talk(chat, "one")
        await chat.say("/ledger")
        await chat.until(lambda: isinstance(chat.app.screen, FactsScreen))
        shown = str(chat.app.screen.query_one("#rows", Static).content)
        assert "user: one" in shown and "assistant: Yes." in shown
        assert "2,000 of 4,096" in shown

    run(tmp_path, use)


def test_the_parts_of_the_ledger_add_up_to_what_the_server_counts(tmp_path: Path) -> None:
    link = ScriptedLink([answer_of("Yes.")], per_message=10, per_char=1)

    async def use(chat: Chat) -> None:
        desk = chat.app.chat.desk
        await chat.say("/system Be brief.")
        await chat.until(lambda: desk.session.system == "Be brief.")
        await talk(chat, "one")
        desk.feature(Tools)._tools = {"calculator": Calculator()}
        chat.prompt.text = "read "
        chat.prompt.move_cursor(chat.prompt.document.end)
        chat.prompt.attach("x" * 900)
        chat.app.chat.do("ledger")
        await chat.until(lambda: bool(facts(chat)))
        lines = facts(chat)
        rows = {line.split("  ")[1].strip(): int(line.split()[-1].replace(",", "")) for line in lines[1:8]}
        assert rows == {
            "system": 19,  # ten a message and one a character, by the script
            "history": 13 + 14,
            "draft": 15,
            "attachments": 900,
            "tools": 100,
            "for the answer": 512,
            "free": 4096 - 512 - 1061,
        }
        assert sum(rows.values()) == 4096 and "1,061 of 4,096" in "\n".join(lines)
        await chat.pilot.press("escape")
        assert chat.prompt.text.startswith("read [Pasted text #1")

    run_chat(tmp_path, link, use, size=(100, 40))


def test_tools_count_where_it_is_asked_whether_a_message_fits(tmp_path: Path) -> None:
    link = full_link()
    link.max_context = 1050

    async def use(chat: Chat) -> None:
        chat.app.chat.desk.feature(Tools)._tools = {"calculator": Calculator()}
        await chat.say("one")
        await chat.until(lambda: asked(chat))
        assert "1,100" in chat.notice and link.requests == []

    run_chat(tmp_path, link, use)
