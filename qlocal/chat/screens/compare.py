"""Several models answer one prompt: choosing them, and their answers in columns beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import SelectionList, Static
from textual.widgets.selection_list import Selection

from qlocal.chat import words
from qlocal.chat.entry import Entry
from qlocal.chat.languages import t
from qlocal.chat.link_state import Choice
from qlocal.chat.widgets.marks import Marks
from qlocal.chat.widgets.transcript import Transcript
from qlocal.clean import clean, clean_line

LEAST_COLUMN_CELLS = 32
MAX_MODELS = 6


class CompareChoice(ModalScreen[list[Choice] | None]):
    """Returns two or more models, in the order of the list with the current one first; None after Esc."""

    CSS_PATH = "compare.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Compare", id="compare.take", priority=True),
        Binding("escape", "leave", "Back", id="compare.cancel"),
    ]

    def __init__(self, choices: Sequence[Choice], current: str | None) -> None:
        super().__init__()
        here = [choice for choice in choices if choice.is_here]
        self._choices = sorted(here, key=lambda choice: choice.name != current)
        self._current = current

    def compose(self) -> ComposeResult:
        with Vertical(id="choice") as box:
            box.border_title = t(words.COMPARE)
            box.border_subtitle = t(words.COMPARE_KEYS)
            yield Marks[str](
                *[Selection(_content(one), one.target, one.name == self._current) for one in self._choices],
                id="models",
            )
            yield Static(id="said")

    def on_mount(self) -> None:
        self.query_one(SelectionList).focus()

    def action_take(self) -> None:
        chosen = self.query_one(SelectionList).selected
        if 2 <= len(chosen) <= MAX_MODELS:
            self.dismiss([one for one in self._choices if one.target in chosen])
        else:
            self.query_one("#said", Static).update(Content(words.compare_count(MAX_MODELS)))

    def action_leave(self) -> None:
        self.dismiss(None)


class CompareScreen(Screen[int | None]):
    """Shows answers as they come. Returns the column that is kept as the branch, None after Esc.

    `stop` is called by Esc while answers come; after that Esc goes back.
    """

    CSS_PATH = "compare.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "focus_column(1)", "Next column", id="compare.next", priority=True),
        Binding("left", "focus_column(-1)", "Column before", id="compare.previous", priority=True),
        Binding("enter", "keep", "Go on with it", id="compare.keep", priority=True),
        Binding("escape", "leave", "Stop or back", id="compare.leave", priority=True),
    ]

    def __init__(self, prompt: str, models: Sequence[str], stop: Callable[[], None]) -> None:
        super().__init__()
        self._prompt, self._models, self._stop = prompt, list(models), stop
        self._is_running = True
        self.is_drawn = asyncio.Event()
        """Set once there are columns to write into."""
        self._answered: set[int] = set()

    def compose(self) -> ComposeResult:
        yield Static(Content(clean(self._prompt)), id="prompt")
        with Horizontal(id="columns"):
            for idx in range(len(self._models)):
                yield Transcript(id=f"column-{idx}")
        yield Static(Content(t(words.COMPARE_RUNS)), id="keys")

    def on_mount(self) -> None:
        for idx, model in enumerate(self._models):
            column = self._column(idx)
            column.show([Entry(idx, False, "", model, t(words.COMPARE_WAITS))])
        self.on_resize()
        self._column(0).focus()
        self.is_drawn.set()

    def on_resize(self) -> None:
        """Share the width, where the columns do not become too narrow; else they are scrolled through."""
        share, left = divmod(self.size.width, len(self._models))
        for idx in range(len(self._models)):
            self._column(idx).styles.width = max(LEAST_COLUMN_CELLS, share + (idx < left))

    def begin(self, idx: int, entry: Entry) -> None:
        """A model is being loaded, or begins to answer."""
        self._column(idx).show([entry])

    def append(self, idx: int, text: str) -> None:
        """Add text to the answer of a column."""
        self._answered.add(idx)
        self._column(idx).append_text(text)

    def finish(self, idx: int, entry: Entry) -> None:
        """An answer is finished, or there is none."""
        self._column(idx).flush()
        self._column(idx).update_last(entry)

    def end(self) -> None:
        """All answers are there, or were stopped."""
        self._is_running = False
        self.query_one("#keys", Static).update(Content(t(words.COMPARE_DONE)))

    def action_focus_column(self, step: int) -> None:
        now = next((i for i in range(len(self._models)) if self._column(i).has_focus), 0)
        target = self._column((now + step) % len(self._models))
        target.focus()
        self.query_one("#columns").scroll_to_widget(target, animate=False)

    def action_keep(self) -> None:
        idx = next((i for i in range(len(self._models)) if self._column(i).has_focus), 0)
        if not self._is_running and idx in self._answered:
            self.dismiss(idx)

    def action_leave(self) -> None:
        if self._is_running:
            self._stop()
        else:
            self.dismiss(None)

    def _column(self, idx: int) -> Transcript:
        return self.query_one(f"#column-{idx}", Transcript)


def _content(choice: Choice) -> Content:
    detail = Content.styled(f"  {clean_line(choice.detail)}", "dim") if choice.detail else Content("")
    return Content(clean_line(choice.name)) + detail
