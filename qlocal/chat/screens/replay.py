"""What the bits changed: an answer as two variants of a model see it, with the tokens marked at which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from textual.binding import Binding, BindingType
from textual.content import Content

from qlocal.chat import token_words, words
from qlocal.chat.languages import t
from qlocal.chat.logprobs import TokenLogprobs
from qlocal.chat.replay import MARKED_KL, Replay
from qlocal.chat.screens.token_walk import TokenWalk
from qlocal.chat.token_layout import visible
from qlocal.clean import clean_line

FULL_KL = 1.0
"""A distance in nats that is shown in the full colour."""
LEAST_LEVEL = 0.25
COLUMN_CELLS, GAP_CELLS = 34, 2
"""A column has so many at most, and so many behind it."""


class ReplayScreen(TokenWalk[None]):
    """Returns nothing. Plus and minus move the threshold from which on tokens are marked."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("plus", "threshold(2.0)", "Mark fewer", id="replay.fewer"),
        Binding("minus", "threshold(0.5)", "Mark more", id="replay.more"),
    ]

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._threshold = MARKED_KL
        raws = [token.reference.chosen.raw for token in replay.tokens]
        super().__init__(raws, token_words.replay_head(replay), t(words.REPLAY_KEYS))

    def begin(self) -> None:
        self._mark()
        self.tokens.go_to(self._replay.first_divergence or 0)

    def is_notable(self, token_idx: int) -> bool:
        return self._replay.tokens[token_idx].is_marked(self._threshold)

    def action_threshold(self, factor: float) -> None:
        self._threshold = min(16.0, max(0.001, self._threshold * factor))
        self._mark()
        self.show_panel()

    def show_panel(self) -> None:
        idx = self.tokens.cursor
        token = self._replay.tokens[idx]
        marked = sum(self.is_notable(i) for i in range(len(self._replay.tokens)))
        names = clean_line(self._replay.reference), clean_line(self._replay.candidate)
        cells = min(COLUMN_CELLS, self.size.width // 2 - GAP_CELLS - 1)  # one is the panel's border or margin
        lines = [
            Content(token_words.replayed_token(idx, len(self._replay.tokens), token, self._threshold, marked)),
            Content.styled(_row(names, cells), "bold"),
        ]
        sides = _candidates(token.reference, cells), _candidates(token.candidate, cells)
        lines += [Content(_row(row, cells)) for row in zip(*sides, strict=False)]
        self.set_panel(lines)

    def on_resize(self) -> None:
        if self.is_mounted:
            self.show_panel()

    def _mark(self) -> None:
        levels = [
            max(LEAST_LEVEL, 1.0 if not token.is_same_top else token.kl / FULL_KL)
            if token.is_marked(self._threshold)
            else 0.0
            for token in self._replay.tokens
        ]
        self.tokens.shade(levels)


def _candidates(token: TokenLogprobs, cells: int) -> list[str]:
    """Return what could have stood there; where the column is narrow, the token is cut and not what is said of it."""
    lines = []
    for one in token.top[:4]:
        text = clean_line(visible(one.raw.decode("utf-8", "replace")))
        note = t(words.WRITTEN) if one.is_same(token.chosen) else ""
        head = f"{one.probability:6.1%}  "
        room = max(1, cells - cell_len(head + note))
        lines.append(head + (text if cell_len(text) <= room else set_cell_size(text, room)) + note)
    return lines


def _row(texts: Sequence[str], cells: int) -> str:
    return "".join(set_cell_size(text, cells) + " " * GAP_CELLS for text in texts)
