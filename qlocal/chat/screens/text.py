"""A long text to read: what a chip stands for."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import TextArea

from qlocal.chat.languages import t
from qlocal.clean import clean, clean_line


class TextScreen(ModalScreen[None]):
    """Scrolls; Esc goes back."""

    CSS = """
    TextScreen { align: center middle; }
    #text { width: 100%; height: 100%; border: round $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Back", id="text.back", priority=True)]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        area = TextArea(clean(self._text), read_only=True, id="text")
        area.border_title = clean_line(self._title)
        area.border_subtitle = t("↑ ↓ scroll · Esc goes back")
        yield area
