"""The words of the status line. Pure text: what is known of model, speed and context, in one line."""

from __future__ import annotations

from dataclasses import dataclass

from qlocal.chat.languages import t

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
    price: str = ""
    """What the message would cost that is being written."""
    form: str = ""
    """Whether the answer keeps to its form, while it is written."""
    acceptance: float | None = None
    warning: str = ""
    """What the user has to know as long as it is so; stands first."""
    others: int = 0
    """Answers of other clients that the server writes or that wait there."""

    def text(self) -> str:
        """Return the line, without padding."""
        parts = [self.model or t("no model"), self._progress(), self._speed(), self._context()]
        if self.others:
            parts.insert(2, t("{count} of others in the queue").format(count=self.others))
        if self.warning:
            parts.insert(0, f"■ {self.warning}")
        return " · ".join(parts + [part for part in (self.form, self.price) if part])

    def _progress(self) -> str:
        if self.fraction is None:
            return t(self.state)
        filled = round(self.fraction * BAR_CELLS)
        return f"{t(self.state)} {'━' * filled}{'╌' * (BAR_CELLS - filled)} {self.fraction:.0%}"

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
