"""Which conversation is open, and which of its branches."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import entry_words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.screens.conversations import ConversationScreen


class Conversations(Feature):
    """New ones, earlier ones, and the branches of the one that is open."""

    ACTIONS: ClassVar = (
        Action(
            "previous_branch",
            "alt+left",
            "Branch before",
            "Show the branch before at the cursor",
            is_shown=False,
        ),
        Action(
            "next_branch",
            "alt+right",
            "Branch after",
            "Show the branch after at the cursor",
            is_shown=False,
        ),
        Action("new_conversation", "ctrl+n", "New", "Begin a new conversation"),
        Action("open_conversation", "ctrl+o", "Open", "Open an earlier conversation"),
    )

    def previous_branch(self) -> None:
        self.desk.start(self._step_branch(-1), "history")

    def next_branch(self) -> None:
        self.desk.start(self._step_branch(1), "history")

    def new_conversation(self) -> None:
        self.desk.feature(Turns).end()
        self.desk.session.clear()
        self.desk.notice.clear()
        self.show()

    def open_conversation(self) -> None:
        self.desk.feature(Turns).end()
        self.desk.start(self._choose(), "choose")

    async def _choose(self) -> None:
        conversations = await self.desk.store.run(lambda history: history.conversations())
        chosen = await self.desk.ask(ConversationScreen(conversations))
        if chosen is not None:
            await self.open(chosen)

    async def open(self, conversation_id: int, message_id: int | None = None) -> None:
        """Show a conversation where it was left, or the branch that has a message, and that message."""
        await self.desk.session.open(conversation_id)
        if message_id is not None and all(m.message_id != message_id for m in self.desk.session.branch):
            await self.desk.session.select(message_id)
        self.show()
        if message_id is not None:
            # The transcript is laid out first, where it was hidden.
            self.desk.screen.call_after_refresh(self.desk.transcript.go_to_entry, message_id)

    async def _step_branch(self, step: int) -> None:
        entry = self.desk.transcript.cursor_entry
        message_id = None if entry is None else entry.entry_id
        if self.desk.feature(Turns).is_busy:
            return
        if (shown := await self.desk.session.step_branch(step, message_id)) is not None:
            self.show()
            if message_id is not None:
                self.desk.transcript.go_to_entry(shown)

    def show(self) -> None:
        """Draw what the session has now, and let every feature know."""
        self.desk.update_status(context_used=entry_words.known_context(self.desk.session.branch))
        self.desk.show_branch()
        for feature in self.desk.features:
            feature.on_conversation()
