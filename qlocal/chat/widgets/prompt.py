"""The editor at the bottom: Enter sends, Ctrl+J is a new line, up and down at its edges walk through old prompts."""

from __future__ import annotations

from collections.abc import Iterable

from textual.events import Key, Paste
from textual.widgets import TextArea

from qlocal.chat.attachments import Attachments, is_long
from qlocal.chat.languages import t
from qlocal.chat.messages import AttachmentAdded, PromptSubmitted, SuggestionKey
from qlocal.chat.widgets.editing import act_at_once

# Shift+Enter and Alt+Enter reach us in some terminals only; Ctrl+J in all of them.
NEW_LINE_KEYS = frozenset({"ctrl+j", "shift+enter", "alt+enter", "ctrl+enter"})

SUGGESTION_KEYS = frozenset({"up", "down", "tab", "enter", "escape"})


class Prompt(TextArea):
    """A text area that grows with its text and remembers what was sent."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, soft_wrap=True, show_line_numbers=False, tab_behavior="focus", placeholder=t("Ask something …")
        )
        self._history: list[str] = []
        self._history_idx = 0
        self._draft = ""
        self.attachments = Attachments()
        self._submitted: list[str] = []  # and not looked at yet: what is typed meanwhile stands behind it
        self.completed_text: str | None = None
        """What stood here when the list of suggestions was filled that is open, and gets some of the keys."""

    def set_history(self, newest_first: Iterable[str]) -> None:
        """Take over what was sent in earlier sessions."""
        self._history = list(newest_first)[::-1]
        self._history_idx = len(self._history)

    def forget(self) -> None:
        """Clear the editor; what stood there is no message and is not recalled."""
        self._history_idx = len(self._history)
        self._draft = ""
        self.text = self.text.replace(self._oldest_submitted or self.text, "", 1)
        self.move_cursor(self.document.end)

    def accept(self) -> None:
        """Clear the editor: its text was taken."""
        taken = self._oldest_submitted or self.text
        if not self._history or self._history[-1] != taken:
            self._history.append(taken)
        self.forget()

    def looked_at(self) -> None:
        """Know that the screen has looked at what was submitted: it was taken, or still stands here."""
        del self._submitted[:1]

    @property
    def _oldest_submitted(self) -> str:
        # Where Backspace has reached into it meanwhile, it is all of the text.
        return next((text for text in self._submitted[:1] if text in self.text), "")

    @property
    def is_completing(self) -> bool:
        """Whether a list of suggestions is open."""
        return self.completed_text is not None

    @property
    def sent_text(self) -> str:
        """What would be sent now: the text with its chips expanded."""
        return self.attachments.expand(self.text)

    def submit(self) -> None:
        """Send what stands here."""
        text = self.text.removeprefix("".join(self._submitted))
        if text.strip():
            self._submitted.append(text)
            self.move_cursor(self.document.end)
            self.post_message(PromptSubmitted(self.attachments.expand(text)))

    def attach(self, content: str, name: str | None = None) -> None:
        """Put a chip for a text at the cursor, in the place of what is selected."""
        added = self.attachments.add(content, name)
        self.replace(added.chip, *self.selection)
        self.post_message(AttachmentAdded(added.number, added.sent))

    def show_count(self, number: int, num_tokens: int) -> None:
        """Write into a chip how many tokens it stands for."""
        before = next((one.chip for one in self.attachments.within(self.text) if one.number == number), None)
        after = self.attachments.count(number, num_tokens).chip
        for row in range(self.document.line_count if before else 0):
            if before is not None and (column := self.document.get_line(row).find(before)) >= 0:
                self.replace(after, (row, column), (row, column + len(before)))
                return

    def text_before_cursor(self) -> str:
        """Return the line of the cursor up to it."""
        row, column = self.cursor_location
        return self.document.get_line(row)[:column]

    def replace_before_cursor(self, num_chars: int, text: str) -> None:
        """Put a text in the place of the characters before the cursor, in its line."""
        row, column = self.cursor_location
        self.replace(text, (row, column - num_chars), (row, column))

    async def _on_key(self, event: Key) -> None:
        # Enter so soon after a key that the list knows nothing of it yet is meant for the text, not for the list.
        is_stale = event.key == "enter" and self.completed_text != self.text
        if self.is_completing and event.key in SUGGESTION_KEYS and not is_stale:
            self._take(event)
            self.post_message(SuggestionKey(event.key))
        elif event.key == "enter":
            self._take(event)
            self.submit()
        elif event.key in NEW_LINE_KEYS:
            self._take(event)
            self.insert("\n")
        elif (event.key == "up" and self.cursor_at_first_line) or (event.key == "down" and self.cursor_at_last_line):
            self._take(event)
            self._recall(-1 if event.key == "up" else 1)
        else:
            await act_at_once(self, event)

    async def _on_paste(self, event: Paste) -> None:
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        if not is_long(text):
            return  # Textual calls the text area's own handler next
        event.stop()
        event.prevent_default()
        self.attach(text)

    def action_delete_left(self) -> None:
        """Delete a character, or a whole chip."""
        if not self._delete_chip("right"):
            super().action_delete_left()

    def action_delete_right(self) -> None:
        """Delete a character, or a whole chip."""
        if not self._delete_chip("left"):
            super().action_delete_right()

    def action_cursor_left(self, select: bool = False) -> None:
        """Go back by a character, or over a chip."""
        if not self._cross_chip("right", 0, select):
            super().action_cursor_left(select)

    def action_cursor_right(self, select: bool = False) -> None:
        """Go on by a character, or over a chip."""
        if not self._cross_chip("left", 1, select):
            super().action_cursor_right(select)

    def leave_chip(self) -> None:
        """Put a cursor that a click or another key brought into a chip behind it: chips change as a whole."""
        row, column = self.cursor_location
        span = self.attachments.span_at(self.document.get_line(row), column)
        if span is not None and self.selection.is_empty:
            self.move_cursor((row, span[1]))

    def _delete_chip(self, edge: str) -> bool:
        row, column = self.cursor_location
        span = self.attachments.span_at(self.document.get_line(row), column, is_edge_inside=edge)
        if span is None or not self.selection.is_empty:
            return False
        self.replace("", (row, span[0]), (row, span[1]))
        return True

    def _cross_chip(self, edge: str, side: int, select: bool) -> bool:
        row, column = self.cursor_location
        span = self.attachments.span_at(self.document.get_line(row), column, is_edge_inside=edge)
        if span is None:
            return False
        self.move_cursor((row, span[side]), select=select)
        return True

    def _take(self, event: Key) -> None:
        event.stop()
        event.prevent_default()

    def _recall(self, step: int) -> None:
        idx = self._history_idx + step
        if not 0 <= idx <= len(self._history):
            return
        if self._history_idx == len(self._history):
            self._draft = self.text
        self._history_idx = idx
        self.text = self._draft if idx == len(self._history) else self._history[idx]
        self.move_cursor(self.document.end)
