"""Sections of rows to look at: statistics, a plan, the report of a checkpoint. Some are read anew every second."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
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
LEAST_VALUE_CELLS = 20

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

    def on_resize(self) -> None:
        # Once the rows have their new width.
        self.call_after_refresh(lambda: self._show(self._sections))

    def _show(self, sections: Sequence[Section]) -> None:
        self._sections = sections
        rows = self.query_one("#rows", Static)
        if room := rows.content_size.width:
            rows.update(Content("\n").join(drawn(sections, room)))


def drawn(sections: Sequence[Section], room: int) -> list[Content]:
    """Return the lines of sections in so many cells: names in a column, values beside it, however long they are."""
    lines: list[Content] = []
    for section in sections:
        lines += [Content(""), Content.styled(clean_line(section.title), "bold")]
        named = [cell_len(clean_line(name)) for name, _ in section.rows]
        column = min(max([NAME_CELLS, *named]), max(NAME_CELLS, room // 2))
        indent = column + 3 if any(named) else 2
        for name, value in section.rows:
            values = [str(line) for line in Content(clean_line(value)).wrap(max(LEAST_VALUE_CELLS, room - indent))]
            head = f"  {set_cell_size(clean_line(name), column)} " if name else " " * indent
            lines.append(Content.styled(head, "dim") + Content(values[0]))
            lines += [Content(" " * indent + line) for line in values[1:]]
    return lines[1:]
