"""The common part of the screens that walk through the tokens of an answer: cursor, jumps, head, panel and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from qlocal.chat.messages import TokenReached
from qlocal.chat.token_layout import shown_texts
from qlocal.chat.widgets.token_view import TokenView
from qlocal.clean import clean_line

T = TypeVar("T")


class TokenWalk(Screen[T | None]):
    """A screen says what stands in its panel (`show_panel`) and which tokens are worth a jump (`is_notable`)."""

    CSS_PATH = "token_walk.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "move(1)", "Next token", id="tokens.next", priority=True),
        Binding("left", "move(-1)", "Token before", id="tokens.previous", priority=True),
        Binding("n", "jump(1)", "Next notable token", id="tokens.next_notable"),
        Binding("p", "jump(-1)", "Notable token before", id="tokens.previous_notable"),
        Binding("j,shift+down", "line(1)", "Line down", id="tokens.line_down"),
        Binding("k,shift+up", "line(-1)", "Line up", id="tokens.line_up"),
        Binding("pagedown", "page(1)", "Page down", id="tokens.page_down", priority=True),
        Binding("pageup", "page(-1)", "Page up", id="tokens.page_up", priority=True),
        Binding("home", "first", "First token", id="tokens.first", priority=True),
        Binding("end", "last", "Last token", id="tokens.last", priority=True),
        Binding("escape", "leave", "Back", id="tokens.leave"),
    ]

    def __init__(self, raws: Sequence[bytes], head: str, keys: str) -> None:
        super().__init__()
        self._raws, self._head, self._keys = list(raws), head, keys

    def compose(self) -> ComposeResult:
        yield Static(Content(clean_line(self._head)), id="head")
        yield TokenView(id="tokens")
        yield Static(id="panel", markup=False)
        yield Static(Content(self._keys), id="keys")

    def on_mount(self) -> None:
        self.tokens.focus()
        self.tokens.show(shown_texts(self._raws))
        self.begin()

    def begin(self) -> None:
        """The tokens are shown, and the cursor stands on the first one."""

    @property
    def tokens(self) -> TokenView:
        return self.query_one(TokenView)

    def show_panel(self) -> None:
        """Show what is known of the token under the cursor."""
        raise NotImplementedError

    def is_notable(self, token_idx: int) -> bool:
        """Whether a jump stops at a token."""
        raise NotImplementedError

    def set_panel(self, lines: Sequence[Content]) -> None:
        """Replace the panel's lines."""
        self.query_one("#panel", Static).update(Content("\n").join(lines))

    def set_head(self, head: str) -> None:
        """Replace the line at the top."""
        self.query_one("#head", Static).update(Content(clean_line(head)))

    @on(TokenReached)
    def show_reached(self) -> None:
        self.reach()

    def reach(self) -> None:
        """The cursor stands on another token."""
        self.show_panel()

    def action_move(self, step: int) -> None:
        self.tokens.move(step)

    def action_line(self, step: int) -> None:
        self.tokens.move_line(step)

    def action_page(self, step: int) -> None:
        self.tokens.move_line(step * self.tokens.page_lines)

    def action_first(self) -> None:
        self.tokens.go_to(0)

    def action_last(self) -> None:
        self.tokens.go_to(len(self._raws) - 1)

    def action_jump(self, step: int) -> None:
        places = range(self.tokens.cursor + step, len(self._raws) if step > 0 else -1, step)
        found = next((idx for idx in places if self.is_notable(idx)), None)
        if found is not None:
            self.tokens.go_to(found)

    def action_leave(self) -> None:
        self.dismiss(None)
