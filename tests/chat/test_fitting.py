"""A model that does not fit: with which options it would is asked of the plan, and offered."""

from __future__ import annotations

from pathlib import Path

from qlocal.chat.link_state import LinkState, Phase, ShownPlan
from qlocal.errors import PlanError
from tests.chat.driving import Chat, run_chat
from tests.chat.scripted import ScriptedLink, answer_of
from tests.chat.test_room import asked, offers

PATH = "/models/tiny"
FAILED = LinkState(Phase.FAILED, "tiny-model", path=PATH, error="tiny-model with 32768 tokens of context needs 40 GiB")


class Small(ScriptedLink):
    """A machine that holds 4,096 tokens of context, twice as many in 8 bits."""

    loads: list[tuple[str, int | None, str | None]]

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        if (max_context or 8192) > (8192 if kv is not None else 4096):
            raise PlanError("it does not fit")
        return ShownPlan(["cache  1.00 GiB"], [])

    async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
        self.loads = [*getattr(self, "loads", []), (model, max_context, kv)]
        await super().select(model, max_context)


def test_a_model_that_does_not_fit_at_the_start_is_loaded_with_what_fits(tmp_path: Path) -> None:
    for keys, load in ((("enter",), (PATH, 4096, None)), (("down", "enter"), (PATH, None, "q8"))):
        starting = LinkState(Phase.STARTING, "tiny-model")
        link = Small([answer_of("Yes.")], first_states=[starting])

        async def use(chat: Chat) -> None:
            await chat.say("hello")
            link.push(FAILED)  # noqa: B023
            await chat.until(lambda: asked(chat))
            assert offers(chat) == [
                "Load the model with a context of 4,096 tokens",
                "Load the model with keys and values in q8",
                "Choose another model",
            ]
            await chat.pilot.press(*keys)  # noqa: B023
            await chat.until_shown("Yes.")  # what was written meanwhile is sent

        run_chat(tmp_path, link, use)
        assert link.loads == [load]


def test_another_model_can_be_chosen_and_esc_leaves_the_reason_in_sight(tmp_path: Path) -> None:
    link = Small([answer_of("Yes.")], first_states=[FAILED])

    async def use(chat: Chat) -> None:
        await chat.until(lambda: asked(chat))
        await chat.pilot.press("escape")
        await chat.until(lambda: chat.app.screen is chat.app.chat)
        assert "needs 40 GiB" in chat.notice
        link.push(LinkState(Phase.LOADING, "tiny-model", path=PATH), FAILED)
        await chat.until(lambda: asked(chat))
        await chat.pilot.press("up", "enter")
        await chat.until(lambda: asked(chat) and "other-model" in offers(chat))

    run_chat(tmp_path, link, use)


def test_nothing_is_offered_where_something_else_is_wrong_or_nothing_helps(tmp_path: Path) -> None:
    class Broken(Small):
        async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
            raise PlanError("its header is cut")

    class Fits(Small):
        async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
            return ShownPlan([], [])

    async def use(chat: Chat) -> None:
        await chat.until(lambda: "needs 40 GiB" in chat.notice)
        await chat.until(lambda: not any(worker.group == "fitting" for worker in chat.app.workers))
        assert chat.app.screen is chat.app.chat

    for kind in (Broken, Fits):
        run_chat(tmp_path, kind([answer_of("Yes.")], first_states=[FAILED]), use)
