"""Holds an answer to a grammar: which tokens may come next. llguidance does the matching, in the process that samples.

The grammar has been compiled in the guard before it comes here, under limits; here it is compiled again, by the same
library with the same bounds on work, which count steps and not time. Nothing of it is ever run.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from qlocal.errors import GrammarError
from qlocal.protocol import GRAMMAR_HEAD, GRAMMAR_LIMITS, Vocabulary

MAX_COMPILED = 16
"""Grammars that are kept: a program asks again and again with the same one."""


class Constraint:
    """What one sequence may still say. `stop_ids` may come where the answer is whole, and nowhere else."""

    def __init__(self, matcher: LLMatcher, stop_ids: Sequence[int], num_tokens: int) -> None:
        self._matcher = matcher
        self._stop_ids = list(stop_ids)
        self._num_tokens = num_tokens

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def allowed(self) -> np.ndarray | None:
        """Return (num_tokens,) bool: the tokens that may come next; None where none may, or matching took too much."""
        mask: np.ndarray = np.zeros(self._num_tokens, dtype=bool)
        if not self.is_complete:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            bits = np.unpackbits(packed, bitorder="little")[: self._num_tokens]
            mask[: len(bits)] = bits
        if self._matcher.is_error():
            return None
        mask[[i for i in self._stop_ids if i < self._num_tokens]] = self._matcher.is_accepting()
        return mask if mask.any() else None

    def take(self, token_id: int) -> bool:
        """Note the next token; False where it must not come."""
        return token_id in self._stop_ids or bool(self._matcher.consume_token(token_id))


class Grammars:
    """Compiles grammars for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = LLTokenizer(cast(Any, _Tokens(vocabulary)), eos_token=vocabulary.stop_ids[:1] or None)
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def constraint(self, grammar: str, stop_ids: Sequence[int], num_tokens: int, begun: Sequence[int]) -> Constraint:
        """Return the constraint of a new answer that starts with the tokens `begun`. GrammarError where it cannot."""
        constraint = Constraint(self._matcher(grammar).deep_copy(), stop_ids, num_tokens)
        if not all(constraint.take(token_id) for token_id in begun):
            raise GrammarError("the beginning of the answer is not what its format allows")
        return constraint

    def _matcher(self, grammar: str) -> LLMatcher:
        if grammar not in self._compiled:
            limits = LLParserLimits(**GRAMMAR_LIMITS)
            matcher = LLMatcher(self._tokenizer, GRAMMAR_HEAD + grammar, log_level=0, limits=limits)
            if matcher.is_error():
                raise GrammarError(f"the format of the answer cannot be followed: {matcher.get_error()[:300]}")
            while len(self._compiled) >= MAX_COMPILED:
                self._compiled.popitem(last=False)
            self._compiled[grammar] = matcher
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar]


class _Tokens:
    """A vocabulary as llguidance asks for it. Nothing is ever encoded, since no text is forced."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        lengths = array("I")
        lengths.frombytes(vocabulary.token_lengths)
        ends = np.cumsum(lengths).tolist()
        blob = vocabulary.token_bytes
        self.tokens = [blob[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        self.special_token_ids = vocabulary.special_ids
        self.eos_token_id = vocabulary.stop_ids[0] if vocabulary.stop_ids else 0

    def __call__(self, text: bytes) -> list[int]:
        return []
