"""What else could have stood there: a cursor walks the tokens of an answer, beside each its five likeliest ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from qlocal.chat import token_words, words
from qlocal.chat.languages import t
from qlocal.chat.logprobs import TokenLogprobs
from qlocal.chat.screens.token_walk import TokenWalk
from qlocal.chat.token_layout import visible
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


class AlternativesScreen(TokenWalk[Fork]):
    """Returns where to fork, None after Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "choose(1)", "Next alternative", id="alternatives.down", priority=True),
        Binding("up", "choose(-1)", "Alternative before", id="alternatives.up", priority=True),
        Binding("h", "heat", "Heat map", id="alternatives.heat"),
        Binding("enter", "fork", "Fork here", id="alternatives.fork", priority=True),
    ]

    def __init__(self, model: str | None, tokens: Sequence[TokenLogprobs]) -> None:
        raws = [token.chosen.raw for token in tokens]
        super().__init__(raws, token_words.alternatives_head(model, tokens), t(words.ALTERNATIVES_KEYS))
        self._tokens = list(tokens)
        self._candidate_idx = 0
        self._is_hot = False

    def is_notable(self, token_idx: int) -> bool:
        return self._tokens[token_idx].entropy_bits >= UNSURE_BITS

    def reach(self) -> None:
        token = self._tokens[self.tokens.cursor]
        # The next one after the token that was written: Enter without a look never repeats the answer.
        self._candidate_idx = 1 if token.is_best and len(token.top) > 1 else 0
        self.show_panel()

    def show_panel(self) -> None:
        token_idx = self.tokens.cursor
        token = self._tokens[token_idx]
        lines = [Content(token_words.token_head(token_idx, len(self._tokens), token))]
        for idx, one in enumerate(token.top):
            mark = "›" if idx == self._candidate_idx else " "
            text = visible(one.raw.decode("utf-8", "replace"))
            bar = "█" * round(one.probability * BAR_CELLS)
            note = t(words.WRITTEN) if one.is_same(token.chosen) else ""
            line = f"{mark} {one.probability:6.1%}  {bar:<{BAR_CELLS}}  {clean_line(text)}{note}"
            lines.append(Content.styled(line, "bold") if idx == self._candidate_idx else Content(line))
        self.set_panel(lines)

    def action_choose(self, step: int) -> None:
        count = len(self._tokens[self.tokens.cursor].top)
        if count:
            self._candidate_idx = (self._candidate_idx + step) % count
            self.show_panel()

    def action_heat(self) -> None:
        self._is_hot = not self._is_hot
        self.tokens.shade([t.entropy_bits / FULL_HEAT_BITS for t in self._tokens] if self._is_hot else [])

    def action_fork(self) -> None:
        token_idx = self.tokens.cursor
        if self._tokens[token_idx].top:
            self.dismiss(Fork(token_idx, self._candidate_idx))
