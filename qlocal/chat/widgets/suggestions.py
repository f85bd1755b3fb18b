"""What the text at the cursor could become: a short list over the prompt, which keeps the focus and sends keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import on
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from qlocal.chat.messages import SuggestionTaken
from qlocal.clean import clean_line

MAX_SHOWN = 8


@dataclass(frozen=True)
class Suggestion:
    """A line of the list. text: what takes the place of the typed text."""

    text: str
    title: str
    detail: str = ""


class Suggestions(OptionList, can_focus=False):
    """Hidden while there is nothing to suggest."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self._shown: list[Suggestion] = []

    def on_mount(self) -> None:
        self.display = False

    @property
    def is_open(self) -> bool:
        return bool(self._shown)

    @property
    def marked(self) -> Suggestion | None:
        return None if self.highlighted is None or not self._shown else self._shown[self.highlighted]

    def offer(self, suggestions: Sequence[Suggestion], *, is_marked: bool = True) -> None:
        """Show these, the first one marked if `is_marked`; none hides the list."""
        if list(suggestions) == self._shown:
            return
        self._shown = list(suggestions)
        self.clear_options()
        self.add_options([Option(_content(one)) for one in self._shown])
        self.display = self.is_open
        self.highlighted = 0 if self._shown and is_marked else None

    def move(self, step: int) -> None:
        """Mark the next or the one before."""
        if self._shown:
            before = self.highlighted if self.highlighted is not None else min(0, -step)
            self.highlighted = (before + step) % len(self._shown)

    def take(self) -> None:
        """Take the marked one, the first one where none is marked."""
        if self._shown:
            self.post_message(SuggestionTaken((self.marked or self._shown[0]).text))

    @on(OptionList.OptionSelected)
    def take_clicked(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(SuggestionTaken(self._shown[event.option_index].text))


def _content(suggestion: Suggestion) -> Content:
    detail = Content.styled(f"  {clean_line(suggestion.detail)}", "dim") if suggestion.detail else Content("")
    return Content(clean_line(suggestion.title)) + detail
