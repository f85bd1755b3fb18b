"""One sentence beside the prompt: an error, or what the chat waits for. Hidden while there is nothing to say."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from qlocal.clean import clean


class Notice(Static):
    """`say` for information, `warn` for errors, `clear` when it is no longer true; `keep` for what stays true."""

    _kept = ""

    def on_mount(self) -> None:
        self.clear()

    def keep(self, sentence: str) -> None:
        """Show an error, and again whenever there is nothing else to show."""
        self._kept = sentence
        self.clear()

    def say(self, sentence: str) -> None:
        """Show information."""
        self._show(sentence, is_error=False)

    def warn(self, sentence: str) -> None:
        """Show an error."""
        self._show(sentence, is_error=True)

    def clear(self) -> None:
        """Show nothing and take no room, but for what is kept."""
        self.display = False
        if self._kept:
            self.warn(self._kept)

    def _show(self, sentence: str, *, is_error: bool) -> None:
        self.set_class(is_error, "error")
        self.update(Content(clean(sentence)))
        self.display = True
