"""Sections of rows to look at: statistics, a plan, the report of a checkpoint. Some are read anew every second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from qlocal.chat import words
from qlocal.chat.facts import Section
from qlocal.chat.languages import t
from qlocal.clean import clean_line

READ_S = 1.0
NAME_CELLS = 20

Read = Callable[[], Awaitable[Sequence[Section]]]


class FactsScreen(ModalScreen[bool]):
    """Returns True for Enter, where `enter` says what that does; else False."""

    CSS_PATH = "facts.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3,q", "leave", "Back", id="facts.leave"),
        Binding("enter", "take", "Take", id="facts.take", priority=True),
    ]

    def __init__(self, title: str, sections: Sequence[Section], read: Read | None = None, enter: str = "") -> None:
        """read: gives newer sections every second; enter: what the Enter key does, empty for nothing."""
        super().__init__()
        self._title, self._sections, self._read, self._enter = title, sections, read, enter

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="facts") as box:
            box.border_title = clean_line(self._title)
            box.border_subtitle = (
                t("Enter {enter} · Esc back").format(enter=self._enter) if self._enter else t(words.FACTS_KEYS)
            )
            yield Static(id="rows")

    def on_mount(self) -> None:
        self._show(self._sections)
        self.query_one("#facts").focus()
        if self._read is not None:
            self.set_interval(READ_S, self._refresh)

    def action_leave(self) -> None:
        self.dismiss(False)

    def action_take(self) -> None:
        if self._enter:
            self.dismiss(True)

    async def _refresh(self) -> None:
        if self._read is not None:
            self._show(await self._read())

    def _show(self, sections: Sequence[Section]) -> None:
        lines: list[Content] = []
        for section in sections:
            lines += [Content(""), Content.styled(clean_line(section.title), "bold")]
            for name, value in section.rows:
                padded = f"  {clean_line(name):<{NAME_CELLS}} " if name else "  "
                lines.append(Content.styled(padded, "dim") + Content(clean_line(value)))
        self.query_one("#rows", Static).update(Content("\n").join(lines[1:]))
