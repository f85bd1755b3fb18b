"""Which model answers."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.desk import Desk
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.screens.models import ModelScreen
from qlocal.errors import EngineError


class Models(Feature):
    """Another model in place; the conversation stays."""

    ACTIONS: ClassVar = (Action("choose_model", "f2,ctrl+l", "Model", "Choose another model"),)

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._wanted: list[tuple[str, asyncio.Future[None]]] = []

    def on_link(self, before: LinkState, state: LinkState) -> None:
        if state.endpoint is not None and state.endpoint != before.endpoint and state.error is None:
            # After the screen has cleared what it said of the server before.
            self.desk.screen.call_later(self.desk.say, words.goes_to(state.endpoint))
        for model, ready in self._wanted:
            if ready.done():
                continue
            if state.phase is Phase.READY and model in (state.model, state.path):
                ready.set_result(None)
            elif state.phase is Phase.FAILED:
                ready.set_exception(EngineError(f"{model} could not be loaded: {state.error}"))

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for a model by `use`."""
        return bool(self._wanted)

    async def use(self, link: Link, model: str) -> None:
        """Load a model and wait until it is ready. QLocalError with the reason where it cannot be loaded."""
        waiting = (model, asyncio.get_running_loop().create_future())
        self._wanted.append(waiting)
        try:
            await link.select(model)
            await waiting[1]
        finally:
            self._wanted.remove(waiting)

    def choose_model(self) -> None:
        if self.desk.link is None:
            self.desk.say(words.NO_LINK_YET)
        else:
            self.desk.start(self._choose(self.desk.link), "choose")

    async def _choose(self, link: Link) -> None:
        chosen = await self.desk.ask(ModelScreen(await link.choices(), self.desk.link_state.model))
        if chosen is not None:
            self.desk.feature(Turns).end()
            await link.select(chosen)
