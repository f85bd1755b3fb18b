"""Decides what is guessed for whom, by lookup in the context or by a draft model, for as long as it pays.

A guess is one run of tokens, no distribution. The model computes it behind what is known, and the sampler draws from
the request's own distribution as ever; while it draws what was guessed, the next row counts as well. That is rejection
sampling for a certain guess: accepted with its probability, else the rest of the distribution remains. It also takes
the same random numbers in the same order, so a seed gives the same text with and without guesses of any length.
"""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.engine.sequence import Sequence as Running
from qlocal.engine.speculation.draft_model import DraftModel
from qlocal.engine.speculation.guesser import PRIORS, Guess, Kind
from qlocal.engine.speculation.pace import MAX_STEP_TOKENS, Acceptance, StepTimes, best_length

MAX_GUESS = MAX_STEP_TOKENS - 1
PLAIN_EVERY = 32
"""Steps after which one without guesses is measured again."""
PROBE_EVERY = 64
"""Tokens of a sequence after which a draft model that does not pay is tried again."""
_PROBE = 3


class Speculator:
    """The guesses of all sequences of one engine. draft: a model that guesses where the context suggests less."""

    def __init__(self, draft: DraftModel | None = None) -> None:
        self._draft = draft
        self._of_draft = Acceptance(PRIORS[Kind.DRAFT])  # of all sequences: whether a model fits another changes little
        self._times = StepTimes()
        self._since_plain = PLAIN_EVERY

    def guess(self, sequences: Sequence[Running]) -> None:
        """Give sequences that decode what they are to try in the coming step, or nothing."""
        is_plain = self._since_plain >= PLAIN_EVERY
        asked: list[tuple[Running, int]] = []
        for sequence in sequences:
            longest = min(sequence.num_remaining, MAX_STEP_TOKENS // len(sequences)) - 1
            least = self._look_up(sequence, longest, len(sequences), is_plain=is_plain)
            length = 0 if is_plain else self._draft_length(sequence, longest, len(sequences), least)
            if length:
                asked.append((sequence, length))
        if self._draft is None or not asked:
            return
        for (sequence, _), token_ids in zip(asked, self._draft.guess(asked), strict=True):
            if token_ids:
                sequence.guesser.guess = Guess(Kind.DRAFT, token_ids, is_tried=True)

    def judge(self, sequence: Running, chosen: Sequence[int]) -> None:
        """Take the tokens that were chosen, which the sequence has by now."""
        sequence.guesser.note(chosen)
        if self._draft is not None:
            self._draft.keep(sequence)

    def note_step(self, batch: Sequence[tuple[Running, int]], seconds: float) -> None:
        """Count what a step took. batch: sequences with their numbers of tokens, none of which reads its prompt."""
        num_tokens = sum(length for _, length in batch)
        is_plain = num_tokens == len(batch)
        self._since_plain = 0 if is_plain else self._since_plain + 1
        self._times.note(num_tokens, seconds, is_plain=is_plain)

    def note_prompt(self) -> None:
        """Count a step that read from a prompt: the context is another one, so a plain step is to be measured."""
        self._since_plain = PLAIN_EVERY

    def forget_block(self, block: int) -> None:
        """Note that a block of the cache gets new content."""
        if self._draft is not None:
            self._draft.forget(block)

    def copy_block(self, source: int, target: int, num_tokens: int) -> None:
        """Note that the first tokens of a block of the cache were copied to another."""
        if self._draft is not None:
            self._draft.copy_block(source, target, num_tokens)

    def _look_up(self, sequence: Running, longest: int, num_sequences: int, *, is_plain: bool) -> float:
        """Guess by the context; return how many times as fast that is as no guess."""
        found = sequence.guesser.look_up(sequence.token_ids, max(longest, 1))
        sequence.guesser.guess = None
        if found is None:
            return 1.0
        kind, token_ids = found
        rate = sequence.guesser.acceptance[kind].rate
        length, gain = best_length(rate, self._times, num_sequences, 0 if is_plain else longest)
        sequence.guesser.guess = Guess(kind, token_ids[:length] if length else token_ids[:1], is_tried=length > 0)
        return gain

    def _draft_length(self, sequence: Running, longest: int, num_sequences: int, least: float) -> int:
        """Return how many tokens the draft model shall guess, where that is faster than `least`; 0 for none."""
        if self._draft is None or longest < 1 or not self._draft.can_guess(sequence):
            return 0
        guesser = sequence.guesser
        guesser.acceptance[Kind.DRAFT] = self._of_draft
        token_s, (length, gain) = self._draft.token_s, (0, 1.0)
        if token_s is not None:
            length, gain = best_length(self._of_draft.rate, self._times, num_sequences, longest, token_s)
        guesser.since_draft += 1
        is_due = token_s is None or guesser.since_draft > PROBE_EVERY
        if gain > least or is_due:
            guesser.since_draft = 0
            return length or min(_PROBE, longest)
        return 0
