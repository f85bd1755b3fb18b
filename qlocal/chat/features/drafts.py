"""What is written but not sent is in the store within half a second, for every conversation apart."""

from __future__ import annotations

from textual.timer import Timer

from qlocal.chat.desk import Desk
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns

SAVE_S = 0.4


class Drafts(Feature):
    """Keeps the prompt's text, and brings it back with its conversation."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._timer: Timer | None = None
        self._of: int | None = None
        """The conversation that the text in the prompt belongs to."""
        self._saved = ""

    def on_typed(self) -> None:
        """Save soon what has changed."""
        if self.desk.session.conversation_id != self._of:  # which has got its number with its first message
            self._store("")
            self._of = self.desk.session.conversation_id
        if self._timer is None and self._text() != self._saved:
            self._timer = self.desk.screen.set_timer(SAVE_S, self._save)

    def on_waiting(self) -> None:
        self.on_typed()

    def on_conversation(self) -> None:
        """Keep the text with the conversation that is left, and bring that of the one that is shown."""
        if self.desk.session.conversation_id != self._of:
            self._save()
            self._of = self.desk.session.conversation_id
            self.desk.start(self.restore(), "draft")

    async def restore(self) -> None:
        """Put what was written before into the prompt, unless something is written there already."""
        conversation_id = self._of
        draft = await self.desk.store.run(lambda history: history.draft(conversation_id))
        if conversation_id == self.desk.session.conversation_id and (draft or self._saved):
            self._saved = self.desk.prompt.text = draft
            self.desk.prompt.move_cursor(self.desk.prompt.document.end)

    def _save(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._store(self._text())

    def _text(self) -> str:
        """Return all that was written and is no message yet. Chips stand for texts of this run alone: a draft keeps
        those themselves."""
        return "\n\n".join([*self.desk.feature(Turns).waiting, self.desk.prompt.sent_text]).strip()

    def _store(self, text: str) -> None:
        conversation_id = self._of
        if text != self._saved:
            self._saved = text
            self.desk.store.submit(lambda history: history.save_draft(conversation_id, text))
