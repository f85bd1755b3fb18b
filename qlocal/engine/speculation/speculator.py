"""Decides what is guessed for whom: by lookup in the context, for as long as it pays.

A guess is one run of tokens, no distribution. The model computes it behind what is known, and the sampler draws from
the request's own distribution as ever; while it draws what was guessed, the next row counts as well. That is rejection
sampling for a certain guess: accepted with its probability, else the rest of the distribution remains. It also takes
the same random numbers in the same order, so a seed gives the same text with and without guesses of any length.
"""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.engine.sequence import Sequence as Running
from qlocal.engine.speculation.guesser import Guess
from qlocal.engine.speculation.pace import MAX_STEP_TOKENS, StepTimes, best_length

MAX_GUESS = MAX_STEP_TOKENS - 1
PLAIN_EVERY = 32
"""Steps after which one without guesses is measured again."""


class Speculator:
    """The guesses of all sequences of one engine."""

    def __init__(self) -> None:
        self._times = StepTimes()
        self._since_plain = PLAIN_EVERY

    def guess(self, sequences: Sequence[Running]) -> None:
        """Give sequences that decode what they are to try in the coming step, or nothing."""
        is_plain = self._since_plain >= PLAIN_EVERY
        for sequence in sequences:
            longest = min(sequence.num_remaining, MAX_STEP_TOKENS // len(sequences)) - 1
            sequence.guesser.guess = self._by_lookup(sequence, longest, len(sequences), is_plain=is_plain)

    def note_step(self, batch: Sequence[tuple[Running, int]], seconds: float) -> None:
        """Count what a step took. batch: sequences with their numbers of tokens, none of which reads its prompt."""
        num_tokens = sum(length for _, length in batch)
        is_plain = num_tokens == len(batch)
        self._since_plain = 0 if is_plain else self._since_plain + 1
        self._times.note(num_tokens, seconds, is_plain=is_plain)

    def note_prompt(self) -> None:
        """Count a step that read from a prompt: the context is another one, so a plain step is to be measured."""
        self._since_plain = PLAIN_EVERY

    def _by_lookup(self, sequence: Running, longest: int, num_sequences: int, *, is_plain: bool) -> Guess | None:
        found = sequence.guesser.look_up(sequence.token_ids, max(longest, 1))
        if found is None:
            return None
        kind, token_ids = found
        rate = sequence.guesser.acceptance[kind].rate
        length, _ = best_length(rate, self._times, num_sequences, 0 if is_plain else longest)
        return Guess(kind, token_ids[:length] if length else token_ids[:1], is_tried=length > 0)
