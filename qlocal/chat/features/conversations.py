"""Which conversation is open, and which of its branches."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.screens.conversations import ConversationScreen


class Conversations(Feature):
    """New ones, earlier ones, and the branches of the one that is open."""

    ACTIONS: ClassVar = (
        Action("previous_branch", "alt+left", "Branch before", "Show the answer before this one", is_shown=False),
        Action("next_branch", "alt+right", "Branch after", "Show the answer after this one", is_shown=False),
        Action("new_conversation", "ctrl+n", "New", "Begin a new conversation"),
        Action("open_conversation", "ctrl+o", "Open", "Open an earlier conversation"),
    )

    def previous_branch(self) -> None:
        self.desk.start(self._step_branch(-1), "history")

    def next_branch(self) -> None:
        self.desk.start(self._step_branch(1), "history")

    def new_conversation(self) -> None:
        self.desk.feature(Turns).stop()
        self.desk.session.clear()
        self.desk.notice.clear()
        self._show()

    def open_conversation(self) -> None:
        self.desk.feature(Turns).stop()
        self.desk.start(self._choose(), "choose")

    async def _choose(self) -> None:
        conversations = await self.desk.store.run(lambda history: history.conversations())
        chosen = await self.desk.ask(ConversationScreen(conversations))
        if chosen is not None:
            await self.desk.session.open(chosen)
            self._show()

    async def _step_branch(self, step: int) -> None:
        if not self.desk.feature(Turns).is_busy and await self.desk.session.step_branch(step):
            self._show()

    def _show(self) -> None:
        """Draw what the session has now, and let every feature know."""
        self.desk.update_status(context_used=words.known_context(self.desk.session.branch))
        self.desk.show_branch()
        for feature in self.desk.features:
            feature.on_conversation()
