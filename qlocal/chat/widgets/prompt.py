"""The editor at the bottom: Enter sends, Ctrl+J is a new line, up and down at its edges walk through old prompts."""

from __future__ import annotations

from collections.abc import Iterable

from textual.events import Key
from textual.widgets import TextArea

from qlocal.chat.languages import t
from qlocal.chat.messages import PromptSubmitted, SuggestionKey

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
        self.is_completing = False
        """Whether a list of suggestions is open, which then gets some of the keys."""

    def set_history(self, newest_first: Iterable[str]) -> None:
        """Take over what was sent in earlier sessions."""
        self._history = list(newest_first)[::-1]
        self._history_idx = len(self._history)

    def forget(self) -> None:
        """Clear the editor; what stood there is no message and is not recalled."""
        self._history_idx = len(self._history)
        self._draft = ""
        self.text = ""

    def accept(self) -> None:
        """Clear the editor: its text was taken."""
        if not self._history or self._history[-1] != self.text:
            self._history.append(self.text)
        self.forget()

    def text_before_cursor(self) -> str:
        """Return the line of the cursor up to it."""
        row, column = self.cursor_location
        return self.document.get_line(row)[:column]

    def replace_before_cursor(self, num_chars: int, text: str) -> None:
        """Put a text in the place of the characters before the cursor, in its line."""
        row, column = self.cursor_location
        self.replace(text, (row, column - num_chars), (row, column))

    async def _on_key(self, event: Key) -> None:
        if self.is_completing and event.key in SUGGESTION_KEYS:
            self._take(event)
            self.post_message(SuggestionKey(event.key))
        elif event.key == "enter":
            self._take(event)
            if self.text.strip():
                self.post_message(PromptSubmitted(self.text))
        elif event.key in NEW_LINE_KEYS:
            self._take(event)
            self.insert("\n")
        elif (event.key == "up" and self.cursor_at_first_line) or (event.key == "down" and self.cursor_at_last_line):
            self._take(event)
            self._recall(-1 if event.key == "up" else 1)
        else:
            await super()._on_key(event)

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
