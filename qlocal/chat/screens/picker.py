"""A list to choose from, narrowed by typing; the common part of the model and conversation choosers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from qlocal.chat import words
from qlocal.chat.languages import t
from qlocal.chat.widgets.editing import LineEditor
from qlocal.clean import clean_line

T = TypeVar("T")


@dataclass(frozen=True)
class Line(Generic[T]):
    """One line: what it says, what it gives. `value` None cannot be chosen."""

    title: str
    detail: str
    value: T | None


class Picker(ModalScreen[T | None], Generic[T]):
    """Returns the value of the chosen line, or None after Esc."""

    CSS_PATH = "picker.tcss"
    HAS_FILTER: ClassVar[bool] = True
    KEYS: ClassVar[str] = words.PICKER_KEYS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Back", id="picker.cancel"),
        Binding("down", "move(1)", "Next", show=False, priority=True, id="picker.next"),
        Binding("up", "move(-1)", "Previous", show=False, priority=True, id="picker.previous"),
    ]

    def __init__(self, title: str, lines: Sequence[Line[T]], empty: str) -> None:
        super().__init__()
        self._title = title
        self._lines = list(lines)
        self._shown: list[Line[T]] = []
        self._empty = empty

    def compose(self) -> ComposeResult:
        with Vertical(id="picker") as box:
            box.border_title = self._title
            box.border_subtitle = t(self.KEYS)
            if self.HAS_FILTER:
                yield LineEditor(placeholder=t("Filter"), id="filter")
            yield OptionList(id="lines", markup=False)

    def on_mount(self) -> None:
        self._fill("")
        self.query_one(Input if self.HAS_FILTER else OptionList).focus()

    @on(Input.Changed)
    def narrow(self, event: Input.Changed) -> None:
        self._fill(event.value)

    @on(Input.Submitted)
    def take_highlighted(self) -> None:
        idx = self.query_one(OptionList).highlighted
        if idx is not None and self._shown:
            self._take(idx)

    @on(OptionList.OptionSelected)
    def take_selected(self, event: OptionList.OptionSelected) -> None:
        self._take(event.option_index)

    def action_move(self, step: int) -> None:
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    def action_cancel(self) -> None:
        self.dismiss(None)

    def _take(self, idx: int) -> None:
        if self._shown and self._shown[idx].value is not None:
            self.dismiss(self._shown[idx].value)

    def _fill(self, text: str) -> None:
        parts = text.lower().split()
        self._shown = [line for line in self._lines if all(part in line.title.lower() for part in parts)]
        options = self.query_one(OptionList)
        options.clear_options()
        if not self._shown:
            options.add_option(Option(self._empty, disabled=True))
            return
        options.add_options([Option(_content(line), disabled=line.value is None) for line in self._shown])
        options.highlighted = next((i for i, line in enumerate(self._shown) if line.value is not None), None)


class Question(Picker[T]):
    """A few answers to choose from: nothing to narrow by typing."""

    HAS_FILTER = False
    KEYS = words.QUESTION_KEYS


def _content(line: Line[T]) -> Content:
    detail = Content.styled(f"  {clean_line(line.detail)}", "dim") if line.detail else Content("")
    return Content(clean_line(line.title)) + detail
