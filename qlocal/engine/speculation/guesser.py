"""What is guessed for one sequence, and how its guesses have fared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from qlocal.engine.speculation.ngram import NgramIndex
from qlocal.engine.speculation.pace import Acceptance


class Kind(Enum):
    """Where a guess comes from; of agreements in the context, how long they are."""

    PAIR = 2
    TRIPLE = 3
    LONG = 4
    DRAFT = 5


PRIORS = {Kind.PAIR: 0.3, Kind.TRIPLE: 0.5, Kind.LONG: 0.7, Kind.DRAFT: 0.65}


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next. is_tried: the model gets them to check; else they are only compared with what comes,
    which costs nothing and tells when guessing would pay again."""

    kind: Kind
    token_ids: list[int]
    is_tried: bool


class Guesser:
    """Guesses of one sequence. num_drafted tokens were tried, num_accepted of them were right."""

    def __init__(self) -> None:
        self.acceptance = {kind: Acceptance(prior) for kind, prior in PRIORS.items()}
        self.guess: Guess | None = None
        self.num_drafted = 0
        self.num_accepted = 0
        self.since_draft = 0
        """Tokens since a draft model last guessed."""
        self._index = NgramIndex()

    @property
    def tried(self) -> list[int]:
        """Return the tokens that the model is to check in this step."""
        return self.guess.token_ids if self.guess is not None and self.guess.is_tried else []

    def look_up(self, token_ids: Sequence[int], count: int) -> tuple[Kind, list[int]] | None:
        """Return `count` tokens that the context suggests, with what kind of agreement it has; None for nothing."""
        match = self._index.lookup(token_ids, count)
        return None if match is None else (Kind(min(match.length, Kind.LONG.value)), match.guess)

    def note(self, chosen: Sequence[int]) -> None:
        """Judge the last guess by the tokens that were chosen."""
        guess, self.guess = self.guess, None
        if guess is None:
            return
        judged = list(zip(guess.token_ids, chosen, strict=False))
        num_right = next((i for i, (guessed, real) in enumerate(judged) if guessed != real), len(judged))
        self.acceptance[guess.kind].note(num_right, was_wrong=num_right < len(judged))
        if guess.is_tried:
            self.num_drafted += len(guess.token_ids)
            self.num_accepted += num_right
