"""Which tools the model may call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import SelectionList, Static
from textual.widgets.selection_list import Selection

from qlocal.chat import words
from qlocal.chat.languages import t
from qlocal.chat.widgets.marks import Marks
from qlocal.clean import clean_line


@dataclass(frozen=True)
class Offer:
    """A tool, or a server of tools, that can be marked."""

    name: str
    detail: str
    is_marked: bool


class ToolboxScreen(ModalScreen[list[str] | None]):
    """Returns the names that are marked, None after Esc."""

    CSS_PATH = "toolbox.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Take", id="tools.take", priority=True),
        Binding("escape", "leave", "Back", id="tools.cancel"),
    ]

    def __init__(self, offers: Sequence[Offer], hint: str) -> None:
        super().__init__()
        self._offers, self._hint = list(offers), hint

    def compose(self) -> ComposeResult:
        with Vertical(id="toolbox") as box:
            box.border_title = t(words.TOOLS)
            box.border_subtitle = t(words.TOOLS_KEYS)
            yield Marks[str](
                *[
                    Selection(
                        Content(clean_line(one.name)) + Content.styled(f"  {clean_line(one.detail)}", "dim"),
                        one.name,
                        one.is_marked,
                    )
                    for one in self._offers
                ],
                id="offers",
            )
            yield Static(Content(clean_line(self._hint)), id="hint")

    def on_mount(self) -> None:
        self.query_one(SelectionList).focus()

    def action_take(self) -> None:
        self.dismiss(list(self.query_one(SelectionList).selected))

    def action_leave(self) -> None:
        self.dismiss(None)
