"""Moving through the transcript, and taking text out of it."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import clipboard, words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns


class Reading(Feature):
    """Scrolling and copying."""

    ACTIONS: ClassVar = (
        Action("copy_or_stop", "ctrl+c", "Copy or stop", "Copy what is selected, else stop", is_shown=False),
        Action("copy_answer", "ctrl+y", "Copy", "Copy the last answer"),
        Action("scroll_up", "pageup", "Up", "Scroll back by a page", is_shown=False),
        Action("scroll_down", "pagedown", "Down", "Scroll forward by a page", is_shown=False),
        Action("go_to_end", "ctrl+end", "End", "Go to the end and follow it", is_shown=False),
    )

    def copy_or_stop(self) -> None:
        if selected := self.desk.prompt.selected_text:
            self.copy(selected)
        else:
            self.desk.feature(Turns).stop()

    def copy_answer(self) -> None:
        answer = next((entry for entry in reversed(self.desk.transcript.entries) if not entry.is_user), None)
        if answer is None or not answer.text:
            self.desk.say(words.NOTHING_TO_COPY)
        else:
            self.copy(answer.text)

    def scroll_up(self) -> None:
        self.desk.transcript.scroll_page_up()

    def scroll_down(self) -> None:
        self.desk.transcript.scroll_page_down()

    def go_to_end(self) -> None:
        self.desk.transcript.go_to_end()

    def copy(self, text: str) -> None:
        """Copy a text by the first way that works, and say which it was."""
        self.desk.start(self._copy(text), "copy")

    async def _copy(self, text: str) -> None:
        self.desk.say(await clipboard.copy(text, self.desk.write_terminal))
