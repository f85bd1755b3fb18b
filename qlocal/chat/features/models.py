"""Which model answers."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.link_state import Link
from qlocal.chat.screens.models import ModelScreen


class Models(Feature):
    """Another model in place; the conversation stays."""

    ACTIONS: ClassVar = (Action("choose_model", "f2,ctrl+l", "Model", "Choose another model"),)

    def choose_model(self) -> None:
        if self.desk.link is None:
            self.desk.say(words.NO_LINK_YET)
        else:
            self.desk.start(self._choose(self.desk.link), "choose")

    async def _choose(self, link: Link) -> None:
        chosen = await self.desk.ask(ModelScreen(await link.choices(), self.desk.link_state.model))
        if chosen is not None:
            self.desk.feature(Turns).stop()
            await link.select(chosen)
