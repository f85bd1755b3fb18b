"""The words of the status line. Pure text: what is known of model, speed and context, in one line."""

from __future__ import annotations

from dataclasses import dataclass

BAR_CELLS = 12


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
    acceptance: float | None = None
    others: int = 0
    """Answers of other clients that the server writes or that wait there."""

    def text(self) -> str:
        """Return the line, without padding."""
        parts = [self.model or "no model", self._progress(), self._speed(), self._context()]
        if self.others:
            parts.insert(2, f"{self.others} of others in the queue")
        return " · ".join(parts)

    def _progress(self) -> str:
        if self.fraction is None:
            return self.state
        filled = round(self.fraction * BAR_CELLS)
        return f"{self.state} {'━' * filled}{'╌' * (BAR_CELLS - filled)} {self.fraction:.0%}"

    def _speed(self) -> str:
        if self.tokens_per_s is None:
            return "– tok/s"
        guesses = "" if self.acceptance is None else f", {self.acceptance:.0%} of guesses right"
        return f"{self.tokens_per_s:.1f} tok/s{guesses}"

    def _context(self) -> str:
        used = "–" if self.context_used is None else f"{self.context_used:,}"
        if self.max_context is None:
            return f"context {used}"
        share = f" ({self.context_used / self.max_context:.0%})" if self.context_used is not None else ""
        return f"context {used} / {self.max_context:,}{share}"
