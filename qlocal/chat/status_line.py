"""The words of the status line. Pure text: what is known of model, speed and context, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from qlocal.chat.languages import t

BAR_CELLS = 12
NEVER_LEFT_OUT = STATE = 5
NAME = 7
"""Ranks of the line's parts: state and warning stay always, and so does the model, as a name that may be cut."""
LEAST_CELLS = 8
"""So much of a name, or of the words of a state, stays."""


@dataclass(frozen=True)
class StatusLine:
    """What the status line shows. `tokens_per_s` of the answer that is written or was last; None before the first.
    acceptance: the share of its guessed tokens that were right, None where none were guessed."""

    model: str | None = None
    state: str = "starting"
    fraction: float | None = None
    tokens_per_s: float | None = None
    context_used: int | None = None
    max_context: int | None = None
    price: str = ""
    """What the message would cost that is being written."""
    form: str = ""
    """Whether the answer keeps to its form, while it is written."""
    acceptance: float | None = None
    warning: str = ""
    """What the user has to know as long as it is so; stands first."""
    others: int = 0
    """Answers of other clients that the server writes or that wait there."""

    def text(self, max_cells: int | None = None) -> str:
        """Return the line, without padding. Where there is no room for all of it, what matters less is left out, and
        at last the model's name is cut."""
        ranked = [
            (6, f"■ {self.warning}" if self.warning else ""),
            (NAME, self.model or t("no model")),
            (STATE, self._progress()),
            (1, t("{count} of others in the queue").format(count=self.others) if self.others else ""),
            (0 if self.tokens_per_s is None else 2, self._speed()),
            (3, self._context()),
            (4, self.form),
            (4, self.price),
        ]
        parts = [(rank, part) for rank, part in ranked if part]
        while max_cells is not None and len(parts) > 1 and cell_len(_joined(parts)) > max_cells:
            least = min(rank for rank, _ in parts)
            if least >= NEVER_LEFT_OUT:
                return _joined(self._cut_to(max_cells, dict(parts)).items())
            parts.remove(next(part for part in reversed(parts) if part[0] == least))
        return _joined(parts)

    def _cut_to(self, max_cells: int, parts: dict[int, str]) -> dict[int, str]:
        """Cut what is never left out: first the words of the state, whose bar stays, then the name."""

        def over() -> int:
            return max(0, cell_len(_joined(parts.items())) - max_cells)

        if self.fraction is not None and over():
            parts[STATE] = self._progress(_cut(t(self.state), over()))
        if over():
            parts[NAME] = _cut(parts[NAME], over())
        return parts

    def _progress(self, words: str | None = None) -> str:
        words = t(self.state) if words is None else words
        if self.fraction is None:
            return words
        filled = round(self.fraction * BAR_CELLS)
        return f"{words} {'━' * filled}{'╌' * (BAR_CELLS - filled)} {self.fraction:.0%}"

    def _speed(self) -> str:
        if self.tokens_per_s is None:
            return t("– tok/s")
        speed = t("{speed:.1f} tok/s").format(speed=self.tokens_per_s)
        if self.acceptance is None:
            return speed
        return speed + t(", {share:.0%} of guesses right").format(share=self.acceptance)

    def _context(self) -> str:
        used = "–" if self.context_used is None else f"{self.context_used:,}"
        if self.max_context is None:
            return t("context {used}").format(used=used)
        share = f" ({self.context_used / self.max_context:.0%})" if self.context_used is not None else ""
        return t("context {used} / {most:,}").format(used=used, most=self.max_context) + share


def _joined(parts: Iterable[tuple[int, str]]) -> str:
    return " · ".join(part for _, part in parts)


def _cut(text: str, over: int) -> str:
    room = max(LEAST_CELLS, cell_len(text) - over - 1)
    return text if room >= cell_len(text) else set_cell_size(text, room).rstrip() + "…"
