"""How long a guess pays: from how often guesses were right, and from the measured times of steps of so many tokens."""

from __future__ import annotations

MAX_STEP_TOKENS = 8
"""Tokens of a step that read the weights once and cost little more than one; `FEW_TOKENS` of the kernels."""
MIN_GAIN = 1.05
"""Times as fast as without: below it a guess is not worth its noise."""
_MEMORY = 24.0
"""Guesses after which an older one counts a third."""
_NEW_LEVEL, _NEW_SHAPE = 0.5, 0.2
_OUTLIER = 2.0
_GROWTH = 0.1
"""Of a step's time for every further token, until it was measured."""


class Acceptance:
    """How often guesses of one kind are right, the latest counting most. prior: before any was seen."""

    def __init__(self, prior: float) -> None:
        self._seen = 4.0
        self._right = prior * self._seen

    @property
    def rate(self) -> float:
        return self._right / self._seen

    def note(self, num_right: int, *, was_wrong: bool) -> None:
        """Count guessed tokens that were right, and the first wrong one; later ones have not been judged."""
        for right in [1.0] * num_right + [0.0] * was_wrong:
            self._right += right
            self._seen += 1.0
            if self._seen > _MEMORY:
                self._right *= _MEMORY / self._seen
                self._seen = _MEMORY


class StepTimes:
    """Seconds of a step by its number of tokens: of a plain one, and how many times as long others take.

    A longer context makes all of them longer, so plain steps are measured again and again.
    """

    def __init__(self) -> None:
        self._level: float | None = None
        self._shape: dict[int, float] = {}

    def note(self, num_tokens: int, seconds: float, *, is_plain: bool) -> None:
        """Count one step. is_plain: every sequence had one token. Sizes above MAX_STEP_TOKENS say nothing here."""
        if not 1 <= num_tokens <= MAX_STEP_TOKENS:
            return
        if is_plain:
            level = seconds / self._shape_of(num_tokens)
            known = level if self._level is None else self._level
            # A step that another program held up says nothing of its size.
            self._level = known + _NEW_LEVEL * (min(level, _OUTLIER * known) - known)
        elif self._level is not None:
            known = self._shape_of(num_tokens)
            shape = min(seconds / self._level, _OUTLIER * known)
            weight = _NEW_SHAPE if num_tokens in self._shape else 1.0
            self._shape[num_tokens] = known + weight * (shape - known)

    def seconds(self, num_tokens: int) -> float | None:
        """Return what a step takes, or None before a plain one was measured."""
        return None if self._level is None else self._level * self._shape_of(num_tokens)

    def _shape_of(self, num_tokens: int) -> float:
        """Return a measured ratio, or the one that the nearest measured size suggests."""
        if num_tokens == 1 or num_tokens in self._shape:
            return self._shape.get(num_tokens, 1.0)
        nearest = min(self._shape, key=lambda n: abs(n - num_tokens), default=None)
        growth = _GROWTH if nearest is None else (self._shape[nearest] - 1.0) / (nearest - 1)
        return 1.0 + growth * (num_tokens - 1)


def best_length(
    rate: float, times: StepTimes, num_sequences: int, longest: int, guess_s: float = 0.0
) -> tuple[int, float]:
    """Return the guess's length that makes most tokens a second, and how many times as many as without; (0, 1.0) where
    none does.

    rate: of a guessed token being right. guess_s: seconds that every guessed token takes before the step.
    """
    plain = times.seconds(num_sequences)
    best = (0, 1.0)
    if plain is None:
        return best
    expected = 1.0
    for length in range(1, longest + 1):
        expected += rate**length
        taken = times.seconds(num_sequences * (1 + length))
        assert taken is not None, "one size was measured, so all are known"
        gain = expected * plain / (taken + length * guess_s)
        if gain > max(best[1], MIN_GAIN):
            best = (length, gain)
    return best
