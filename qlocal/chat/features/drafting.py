"""What is being written: files and pastes as chips, an editor of one's own, and what the message would cost."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import ClassVar

from textual.timer import Timer

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.desk import Desk
from qlocal.chat.documents import read_document
from qlocal.chat.external_editor import edit_file
from qlocal.chat.features.base import Feature
from qlocal.chat.features.tools import Tools
from qlocal.chat.link_state import LinkState
from qlocal.chat.typed_path import typed_path
from qlocal.errors import QLocalError

COUNT_DELAY_S = 0.4


class Drafting(Feature):
    """Works on the text in the editor, never on what was sent."""

    ACTIONS: ClassVar = (
        Action("editor", "ctrl+g", "Editor", "Write the message in $EDITOR", is_shown=False),
        Action("view_attachment", "alt+v", "View", "Show what the chips of the message stand for", is_shown=False),
        Action("file", "", "File", "Take a file along: text, PDF or .docx", is_shown=False, argument="PATH"),
    )

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._timer: Timer | None = None
        self._counted: str | None = None

    def on_link(self, before: LinkState, state: LinkState) -> None:
        if before.phase is not state.phase:
            self._counted = None
            self._count_soon()

    def on_conversation(self) -> None:
        self._counted = None
        self._count_soon()

    def on_typed(self) -> None:
        """Count what the conversation would have with what is typed, once nothing is typed for a moment."""
        self._count_soon()

    def on_attached(self, number: int, sent: str) -> None:
        """Count the tokens of a chip."""
        self.desk.start(self._count_chip(number, sent), "chips", exclusive=False)

    def editor(self) -> None:
        self.desk.start(self._edit(), "choose")

    def view_attachment(self) -> None:
        from qlocal.chat.screens.text import TextScreen

        found = self.desk.prompt.attachments.within(self.desk.prompt.text)
        if found:
            title = " · ".join(one.chip for one in found)
            self.desk.screen.app.push_screen(TextScreen(title, "\n\n".join(one.sent for one in found)))
        else:
            self.desk.say(words.NO_ATTACHMENT)

    def file(self, path: str) -> None:
        if path:
            self.attach(path)
        else:
            self.desk.say(words.NAME_A_FILE)

    def attach(self, path: str) -> None:
        """Put a chip for a file into the text."""
        self.desk.start(self._attach(path), "chips", exclusive=False)

    async def _attach(self, path: str) -> None:
        found = typed_path(path)
        # In a thread: a large PDF takes seconds.
        document = await asyncio.to_thread(read_document, found)
        self.desk.prompt.attach(document.text, path)
        if document.unseen:
            self.desk.say(words.unseen(found.name, document.unseen))

    async def _count_chip(self, number: int, sent: str) -> None:
        """Ask for the whole message and for one without a word: the difference is the text's own."""
        link = self.desk.link
        if link is None or not self.desk.is_ready:
            return
        whole = await link.count([{"role": "user", "content": sent}])
        least = await link.count([{"role": "user", "content": "."}])
        if whole is not None and least is not None:
            self.desk.prompt.show_count(number, max(1, whole.prompt_tokens - least.prompt_tokens + 1))

    def _count_soon(self) -> None:
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.desk.screen.set_timer(COUNT_DELAY_S, lambda: self.desk.start(self._count(), "count"))

    async def _count(self) -> None:
        text = self.desk.prompt.text
        if self.desk.link is None or not self.desk.is_ready or text == self._counted:
            return
        self._counted = text
        if not text.strip() or text.startswith("/"):
            self.desk.show_price("")
            return
        messages = self.desk.session.request_with(self.desk.prompt.sent_text)
        try:
            count = await self.desk.link.count(messages, self.desk.feature(Tools).offered)
        except QLocalError:
            count = None  # nothing was asked for: what is wrong is said when the message is sent
        if self.desk.prompt.text == text:
            self.desk.show_price("" if count is None else words.price(count, self._speed()))

    def _speed(self) -> float | None:
        """Return how fast the last answer's prompt was read, in tokens a second."""
        for message in reversed(self.desk.session.branch):
            read = message.meta.get("prompt_tokens", 0) - message.meta.get("cached_tokens", 0)
            seconds = message.meta.get("prefill_s")
            if isinstance(seconds, float) and seconds > 0 and read > 0:
                return float(read / seconds)
        return None

    async def _edit(self) -> None:
        prompt = self.desk.prompt
        with tempfile.TemporaryDirectory(prefix="qlocal-") as folder:
            path = Path(folder) / "message.md"
            path.write_text(prompt.text, encoding="utf-8")
            edit_file(self.desk.screen.app, path)
            prompt.text = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
        prompt.move_cursor(prompt.document.end)
