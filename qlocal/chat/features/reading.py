"""Moving through the transcript, and taking text out of it."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import clipboard, words
from qlocal.chat.actions import Action
from qlocal.chat.entry import Entry
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.thinking import answer_of


class Reading(Feature):
    """Scrolling, the cursor on a block, folding and copying."""

    ACTIONS: ClassVar = (
        Action("copy_or_stop", "ctrl+c", "Copy or stop", "Copy what is selected, else stop", is_shown=False),
        Action("copy_answer", "ctrl+y", "Copy", "Copy the message under the cursor, else the last answer"),
        Action(
            "copy_block", "alt+c", "Copy block", "Copy the block under the cursor, else the last code", is_shown=False
        ),
        Action("previous_block", "alt+up", "Block before", "Put the cursor on the block before", is_shown=False),
        Action("next_block", "alt+down", "Block after", "Put the cursor on the block after", is_shown=False),
        Action("previous_message", "alt+pageup", "Message before", "Go to the message before", is_shown=False),
        Action("next_message", "alt+pagedown", "Message after", "Go to the message after", is_shown=False),
        Action("toggle_thought", "ctrl+t", "Thought", "Show or hide what the model thought", is_shown=False),
        Action("scroll_up", "pageup", "Up", "Scroll back by a page", is_shown=False),
        Action("scroll_down", "pagedown", "Down", "Scroll forward by a page", is_shown=False),
        Action("go_to_end", "ctrl+end", "End", "Go to the end and follow it", is_shown=False),
    )

    def copy_or_stop(self) -> None:
        if selected := self.desk.prompt.selected_text or self.desk.screen.get_selected_text():
            self.copy(selected)
        else:
            self.desk.feature(Turns).stop()

    def copy_answer(self) -> None:
        entries = self.desk.transcript.entries
        entry = self.desk.transcript.cursor_entry or next((one for one in reversed(entries) if not one.is_user), None)
        self._copy_or_say(None if entry is None else _text_of(entry), words.NOTHING_TO_COPY)

    def copy_block(self) -> None:
        self._copy_or_say(
            self.desk.transcript.cursor_source or self.desk.transcript.last_code(), words.NO_BLOCK_TO_COPY
        )

    def previous_block(self) -> None:
        self.desk.transcript.move_cursor(-1)

    def next_block(self) -> None:
        self.desk.transcript.move_cursor(1)

    def previous_message(self) -> None:
        self.desk.transcript.move_cursor(-1, by_entry=True)

    def next_message(self) -> None:
        self.desk.transcript.move_cursor(1, by_entry=True)

    def toggle_thought(self) -> None:
        if not self.desk.transcript.toggle_thought():
            self.desk.say(words.NOTHING_TO_UNFOLD)

    def scroll_up(self) -> None:
        self.desk.transcript.scroll_page_up()

    def scroll_down(self) -> None:
        self.desk.transcript.scroll_page_down()

    def go_to_end(self) -> None:
        self.desk.transcript.go_to_end()

    def copy(self, text: str) -> None:
        """Copy a text by the first way that works, and say which it was."""
        self.desk.start(self._copy(text), "copy")

    def _copy_or_say(self, text: str | None, nothing: str) -> None:
        if text:
            self.copy(text)
        else:
            self.desk.say(nothing)

    async def _copy(self, text: str) -> None:
        self.desk.say(await clipboard.copy(text, self.desk.write_terminal))


def _text_of(entry: Entry) -> str:
    """Return what is worth copying of a message: an answer without its thought."""
    return entry.text if entry.is_user else answer_of(entry.text)
