"""Search all conversations; the list follows what is typed."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option
from textual.worker import Worker, WorkerError

from qlocal.chat import words
from qlocal.chat.languages import t
from qlocal.chat.store.records import Hit, Role
from qlocal.chat.store.threaded import Store
from qlocal.chat.told_errors import told
from qlocal.chat.widgets.editing import LineEditor
from qlocal.clean import clean_line
from qlocal.errors import QLocalError


class SearchScreen(ModalScreen[Hit | None]):
    """Returns the chosen hit, or None after Esc."""

    CSS_PATH = "picker.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", id="search.cancel"),
        Binding("down", "move(1)", "Next", show=False, priority=True, id="search.next"),
        Binding("up", "move(-1)", "Previous", show=False, priority=True, id="search.previous"),
    ]

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._hits: list[Hit] = []
        self._looking: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="picker") as box:
            box.border_title = t(words.SEARCH)
            box.border_subtitle = t(words.SEARCH_KEYS)
            yield LineEditor(placeholder=t(words.SEARCH_FOR), id="filter")
            yield OptionList(id="lines", markup=False)

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    @on(Input.Changed)
    def look(self, event: Input.Changed) -> None:
        self._looking = self._look(event.value)

    @work(exclusive=True)
    async def _look(self, text: str) -> None:
        try:
            hits = await self._store.run(lambda history: history.search(text))
        except QLocalError as error:
            self.query_one("#picker").border_subtitle = told(str(error))
            return
        self._hits = hits
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(_content(hit)) for hit in hits])
        if not hits and text.strip():
            options.add_option(Option(t(words.NOTHING_FOUND), disabled=True))
        options.highlighted = 0 if hits else None

    @on(Input.Submitted)
    async def take_highlighted(self) -> None:
        # Enter so soon after a letter is meant for what will be found, not for what still stands there.
        if self._looking is not None:
            with suppress(WorkerError):
                await self._looking.wait()
        idx = self.query_one(OptionList).highlighted
        if idx is not None and self._hits:
            self.dismiss(self._hits[idx])

    @on(OptionList.OptionSelected)
    def take_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._hits[event.option_index])

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()


def _content(hit: Hit) -> Content:
    when = time.strftime("%Y-%m-%d", time.localtime(hit.created_at))
    who = t("You") if hit.role is Role.USER else t("Answer")
    head = Content.styled(f"{when} · {clean_line(hit.title)} · {who}\n", "dim")
    return head + Content(clean_line(hit.snippet))
