"""A few fields to fill in: the variables of a prompt, a name. Enter goes to the next one, and takes all at the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Key
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Label, TextArea

from qlocal.chat import words
from qlocal.chat.languages import t
from qlocal.chat.widgets.editing import act_at_once
from qlocal.clean import clean, clean_line

NEW_LINE_KEYS = frozenset({"ctrl+j", "shift+enter", "alt+enter"})


class Field(TextArea):
    """One value, of as many lines as it has: a paste stays whole."""

    class Done(Message):
        """Enter was pressed in it."""

    def __init__(self, name: str, value: str) -> None:
        super().__init__(clean(value), soft_wrap=True, show_line_numbers=False, tab_behavior="focus", name=name)

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            self.post_message(self.Done())
        elif event.key in NEW_LINE_KEYS:
            self.insert("\n")
        else:
            await act_at_once(self, event)
            return
        event.stop()
        event.prevent_default()


class Form(ModalScreen[dict[str, str] | None]):
    """Returns the values by the fields' names, or None after Esc."""

    CSS_PATH = "form.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Back", id="form.back", priority=True)]

    def __init__(self, title: str, values: Mapping[str, str]) -> None:
        """values: what stands in every field at first."""
        super().__init__()
        self._title, self._values = title, values

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="form", can_focus=False) as box:
            box.border_title = clean_line(self._title)
            box.border_subtitle = t(words.FORM_KEYS)
            for name, value in self._values.items():
                yield Label(clean_line(name), markup=False)
                yield Field(name, value)

    def on_mount(self) -> None:
        fields = list(self.query(Field))
        empty = next((field for field in fields if not field.text), fields[0])
        empty.focus()

    @on(Field.Done)
    def go_on(self) -> None:
        fields = list(self.query(Field))
        at = next(i for i, field in enumerate(fields) if field.has_focus)
        if (rest := next((field for field in fields[at + 1 :] if not field.text), None)) is not None:
            rest.focus()
        else:
            self.dismiss({field.name or "": field.text for field in fields})
