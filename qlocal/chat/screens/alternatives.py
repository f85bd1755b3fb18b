"""What else could have stood there: a cursor walks the tokens of an answer, beside each its five likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from qlocal.chat import words
from qlocal.chat.logprobs import TokenLogprobs
from qlocal.chat.messages import TokenReached
from qlocal.chat.token_layout import shown_texts, visible
from qlocal.chat.widgets.token_view import TokenView
from qlocal.clean import clean_line

BAR_CELLS = 20
FULL_HEAT_BITS = 3.0
"""An entropy that is shown in the full colour: eight tokens alike."""
UNSURE_BITS = 1.0
"""As unsure as a coin."""


@dataclass(frozen=True)
class Fork:
    """What the user chose: to go on from this token with this candidate instead."""

    token_idx: int
    candidate_idx: int


class AlternativesScreen(Screen[Fork | None]):
    """Returns where to fork, None after Esc."""

    CSS_PATH = "alternatives.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right", "move(1)", "Next token", id="alternatives.next", priority=True),
        Binding("left", "move(-1)", "Token before", id="alternatives.previous", priority=True),
        Binding("down", "choose(1)", "Next alternative", id="alternatives.down", priority=True),
        Binding("up", "choose(-1)", "Alternative before", id="alternatives.up", priority=True),
        Binding("n", "unsure(1)", "Next unsure token", id="alternatives.next_unsure"),
        Binding("p", "unsure(-1)", "Unsure token before", id="alternatives.previous_unsure"),
        Binding("j,shift+down", "line(1)", "Line down", id="alternatives.line_down"),
        Binding("k,shift+up", "line(-1)", "Line up", id="alternatives.line_up"),
        Binding("pagedown", "page(1)", "Page down", id="alternatives.page_down", priority=True),
        Binding("pageup", "page(-1)", "Page up", id="alternatives.page_up", priority=True),
        Binding("home", "first", "First token", id="alternatives.first", priority=True),
        Binding("end", "last", "Last token", id="alternatives.last", priority=True),
        Binding("h", "heat", "Heat map", id="alternatives.heat"),
        Binding("enter", "fork", "Fork here", id="alternatives.fork", priority=True),
        Binding("escape", "leave", "Back", id="alternatives.leave"),
    ]

    def __init__(self, model: str | None, tokens: Sequence[TokenLogprobs]) -> None:
        super().__init__()
        self._model = model
        self._tokens = list(tokens)
        self._candidate_idx = 0
        self._is_hot = False

    def compose(self) -> ComposeResult:
        yield Static(Content(clean_line(words.alternatives_head(self._model, self._tokens))), id="head")
        yield TokenView(id="tokens")
        yield Static(id="token", markup=False)
        yield Static(words.ALTERNATIVES_KEYS, id="keys", markup=False)

    def on_mount(self) -> None:
        view = self.query_one(TokenView)
        view.focus()
        view.show(shown_texts([token.chosen.raw for token in self._tokens]))

    @on(TokenReached)
    def show_token(self) -> None:
        token = self._tokens[self.query_one(TokenView).cursor]
        # The next one after the token that was written: Enter without a look never repeats the answer.
        self._candidate_idx = 1 if token.is_best and len(token.top) > 1 else 0
        self._show_candidates()

    def action_move(self, step: int) -> None:
        self.query_one(TokenView).move(step)

    def action_line(self, step: int) -> None:
        self.query_one(TokenView).move_line(step)

    def action_page(self, step: int) -> None:
        view = self.query_one(TokenView)
        view.move_line(step * view.page_lines)

    def action_first(self) -> None:
        self.query_one(TokenView).go_to(0)

    def action_last(self) -> None:
        self.query_one(TokenView).go_to(len(self._tokens) - 1)

    def action_unsure(self, step: int) -> None:
        view = self.query_one(TokenView)
        places = range(view.cursor + step, len(self._tokens) if step > 0 else -1, step)
        found = next((i for i in places if self._tokens[i].entropy_bits >= UNSURE_BITS), None)
        if found is not None:
            view.go_to(found)

    def action_choose(self, step: int) -> None:
        count = len(self._tokens[self.query_one(TokenView).cursor].top)
        if count:
            self._candidate_idx = (self._candidate_idx + step) % count
            self._show_candidates()

    def action_heat(self) -> None:
        self._is_hot = not self._is_hot
        levels = [token.entropy_bits / FULL_HEAT_BITS for token in self._tokens] if self._is_hot else []
        self.query_one(TokenView).shade(levels)

    def action_fork(self) -> None:
        token_idx = self.query_one(TokenView).cursor
        if self._tokens[token_idx].top:
            self.dismiss(Fork(token_idx, self._candidate_idx))

    def action_leave(self) -> None:
        self.dismiss(None)

    def _show_candidates(self) -> None:
        token_idx = self.query_one(TokenView).cursor
        token = self._tokens[token_idx]
        lines = [Content(words.token_head(token_idx, len(self._tokens), token))]
        for idx, one in enumerate(token.top):
            mark = "›" if idx == self._candidate_idx else " "
            text = visible(one.raw.decode("utf-8", "replace"))
            bar = "█" * round(one.probability * BAR_CELLS)
            is_written = one == token.chosen or (one.token_id == token.chosen.token_id and one.raw == token.chosen.raw)
            note = words.WRITTEN if is_written else ""
            line = f"{mark} {one.probability:6.1%}  {bar:<{BAR_CELLS}}  {clean_line(text)}{note}"
            lines.append(Content.styled(line, "bold") if idx == self._candidate_idx else Content(line))
        self.query_one("#token", Static).update(Content("\n").join(lines))
