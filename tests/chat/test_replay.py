"""What the bits changed: one answer read by two variants of a model, swapped in the server and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import OptionList, Static

from qlocal.chat.link_state import LinkState, Phase, Variant
from qlocal.chat.replay import Replay, ReplayedToken
from qlocal.chat.screens.replay import ReplayScreen
from qlocal.chat.screens.variants import VariantScreen
from qlocal.chat.widgets.token_view import TokenView
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, scored, scored_answer

FOUR_BITS = scored({"The": 0.9, "A": 0.1}, {" cat": 0.5, " dog": 0.3}, {" sat": 0.4, " ran": 0.6}, {".": 0.9})
BF16 = scored({"The": 0.95, "A": 0.05}, {" cat": 0.4, " dog": 0.5}, {" sat": 0.8, " ran": 0.2}, {".": 0.7})
KL, REVERSE = [0.01, 0.2, 0.3, 0.12], [0.02, 0.4, 0.6, 0.24]
LOADED = Variant("tiny/awq", "/m/tiny/awq", "awq", 1000, True, True)
OTHERS = [
    Variant("tiny/bf16", "/m/tiny/bf16", "bf16", 4000, False, True),
    Variant("tiny/small", "/m/tiny/small", "gguf", 800, False, False),
]


def link_with(**fields: Any) -> ScriptedLink:
    scores = {"scores": (FOUR_BITS, BF16), "distances": (KL, REVERSE), "at_hand": [LOADED, *OTHERS]}
    return ScriptedLink([scored_answer(FOUR_BITS)], **(scores | fields))


async def asked(chat: Chat) -> None:
    await chat.say("go")
    await chat.until_shown("The cat sat.")
    await chat.until_idle()
    chat.app.chat.action_do("replay")


async def choose(chat: Chat, name: str) -> None:
    await chat.until(lambda: isinstance(chat.app.screen, VariantScreen))
    await chat.pilot.press(*name, "enter")


def shown(chat: Chat, part: str) -> str:
    return str(chat.app.screen.query_one(part, Static).content)


def test_an_answer_is_read_by_another_variant_and_the_model_comes_back(tmp_path: Path) -> None:
    link = link_with()

    async def use(chat: Chat) -> None:
        await asked(chat)
        await chat.until(lambda: isinstance(chat.app.screen, VariantScreen))
        lines = chat.app.screen.query_one(OptionList)
        await chat.until(lambda: lines.option_count == 2)
        details = [str(lines.get_option_at_index(i).prompt) for i in range(lines.option_count)]
        assert "a model of another size" in details[1]
        await choose(chat, "bf16")
        await chat.until(lambda: isinstance(chat.app.screen, ReplayScreen))
        await chat.until(lambda: "Token 2 of 4" in shown(chat, "#panel"))
        # BF16 is the larger one, so distances count from it: of the two, the reverse.
        head = shown(chat, "#head")
        assert head.startswith("tiny/awq from tiny/bf16") and "mean KLD 0.3150" in head and "median 0.3200" in head
        assert "same top 50.0%" in head and "first divergence token 2" in head
        panel = shown(chat, "#panel")
        assert "Token 2 of 4 · KLD 0.4000 · another token on top" in panel
        assert "3 marked from 0.1 on" in panel
        left, right = panel.splitlines()[1].split()
        assert (left, right) == ("tiny/bf16", "tiny/awq")
        await chat.until(lambda: link.selected == ["/m/tiny/bf16", "/m/tiny/awq"])
        await chat.pilot.press("escape")
        await chat.until_shown("The cat sat.")
        assert "tiny/awq · ready" in chat.status

    run_chat(tmp_path, link, use)
    ids = [token.chosen.token_id for token in FOUR_BITS]
    (_, first, _), (prompt, second, _) = link.scored
    assert first == ids and second == ids and prompt == [0, 1, 2]


def test_the_cursor_chooses_which_answer_is_replayed(tmp_path: Path) -> None:
    link = link_with()
    link.answers.append(scored_answer(scored({"Later": 0.6})))

    async def use(chat: Chat) -> None:
        for text, answer in (("go", "The cat sat."), ("on", "Later")):
            await chat.say(text)
            await chat.until_shown(answer)
            await chat.until_idle()
        await chat.pilot.press("alt+pageup", "alt+pageup", "alt+pageup", "alt+r")
        await choose(chat, "bf16")
        await chat.until(lambda: isinstance(chat.app.screen, ReplayScreen))
        await chat.until(lambda: "of 4" in shown(chat, "#panel"))

    run_chat(tmp_path, link, use)
    assert link.scored[0][1] == [token.chosen.token_id for token in FOUR_BITS]


def test_marks_are_jumped_to_and_the_threshold_moves(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await asked(chat)
        await choose(chat, "bf16")
        await chat.until(lambda: isinstance(chat.app.screen, ReplayScreen))
        view = chat.app.screen.query_one(TokenView)
        await chat.until(lambda: view.cursor == 1)
        await chat.pilot.press("n", "n")
        await chat.until(lambda: view.cursor == 3)
        await chat.pilot.press("home", *["plus"] * 2, "n")
        await chat.until(lambda: view.cursor == 1)
        await chat.until(lambda: "2 marked from 0.4 on" in shown(chat, "#panel"))
        await chat.pilot.press("n", "n")
        await chat.until(lambda: view.cursor == 2)
        await chat.pilot.press("minus", "minus", "minus", "minus", "minus")
        await chat.until(lambda: "marked from 0.0125 on" in shown(chat, "#panel"))

    run_chat(tmp_path, link_with(), use)


def test_a_variant_that_cannot_be_loaded_is_said_and_the_model_comes_back(tmp_path: Path) -> None:
    class Refusing(ScriptedLink):
        async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
            self.selected.append(model)
            ready = LinkState(Phase.READY, model, path=model, max_context=4096)
            self.push(LinkState(Phase.FAILED, model, error="it needs 140 GiB") if "bf16" in model else ready)

    link = Refusing([scored_answer(FOUR_BITS)], scores=(FOUR_BITS,), at_hand=[LOADED, *OTHERS])

    async def use(chat: Chat) -> None:
        await asked(chat)
        await choose(chat, "bf16")
        await chat.until(lambda: "/m/tiny/awq · ready" in chat.status)
        await chat.until(lambda: "140 GiB" in chat.notice)
        await chat.until_idle()

    run_chat(tmp_path, link, use)
    assert link.selected == ["/m/tiny/bf16", "/m/tiny/awq"]


def test_escape_while_the_other_variant_loads_brings_the_model_back(tmp_path: Path) -> None:
    class Slow(ScriptedLink):
        async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
            self.selected.append(model)
            state = Phase.LOADING if "bf16" in model else Phase.READY
            self.push(LinkState(state, model, path=model, max_context=4096))

    link = Slow([scored_answer(FOUR_BITS)], scores=(FOUR_BITS,), at_hand=[LOADED, *OTHERS])

    async def use(chat: Chat) -> None:
        await asked(chat)
        await choose(chat, "bf16")
        await chat.until(lambda: "loading" in chat.status and "comes back afterwards" in chat.notice)
        await chat.pilot.press("escape")
        await chat.until(lambda: "/m/tiny/awq · ready" in chat.status)

    run_chat(tmp_path, link, use)
    assert link.selected == ["/m/tiny/bf16", "/m/tiny/awq"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"is_own": False}, "needs our own server"),
        ({"at_hand": [LOADED]}, "There is no other variant"),
        ({"at_hand": []}, "There is no other variant"),
    ],
)
def test_what_cannot_be_replayed_is_said(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    async def use(chat: Chat) -> None:
        chat.app.chat.action_do("replay")
        assert "no answer yet" in chat.notice
        await asked(chat)
        await chat.until(lambda: said in chat.notice)

    run_chat(tmp_path, link_with(**fields), use)


def test_figures_of_a_replay_are_those_of_its_tokens() -> None:
    rows = [ReplayedToken(a, b, kl) for a, b, kl in zip(BF16, FOUR_BITS, KL, strict=True)]
    replay = Replay("a", "b", rows)
    assert replay.mean_kl == pytest.approx(sum(KL) / 4) and replay.max_kl == 0.3
    assert replay.median_kl == pytest.approx(0.16) and replay.same_top == 0.5 and replay.first_divergence == 1
    assert [row.is_marked(0.1) for row in rows] == [False, True, True, True]
    empty = Replay("a", "b", [])
    assert (empty.mean_kl, empty.median_kl, empty.same_top, empty.first_divergence) == (0.0, 0.0, 0.0, None)
    assert math.isfinite(empty.max_kl)


def test_both_columns_stand_beside_each_other_on_a_small_screen(tmp_path: Path) -> None:
    async def use(chat: Chat) -> None:
        await asked(chat)
        await choose(chat, "bf16")
        await chat.until(lambda: isinstance(chat.app.screen, ReplayScreen))
        await chat.until(lambda: "Token 2 of 4" in shown(chat, "#panel"))
        panel = chat.app.screen.query_one("#panel", Static)
        rows = str(panel.content).splitlines()[1:]
        assert len(rows) == 3 and all(len(row) <= panel.content_size.width for row in rows)
        assert "dog" in rows[1] and "cat  ← written" in rows[1]

    run_chat(tmp_path, link_with(), use, size=(60, 15))
