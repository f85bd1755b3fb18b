"""A loaded vocabulary: plain text to ids, and control tokens found in text apart from it.

An encoder never matches control or other added tokens by itself; `matcher` finds them, and `chat` decides in
which parts of a prompt they count. So what is typed cannot become a control token.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from qlocal.guard.errors import vocabulary_error

MAX_TOKENS = 1 << 20
MAX_TOKEN_CHARS = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK = re.compile(r"\s*")


@dataclass(frozen=True)
class AddedToken:
    """A token that is matched in text as a whole. Special ones are control tokens; `strips_*` eat white space."""

    id: int
    text: str
    is_special: bool
    strips_left: bool = False
    strips_right: bool = False
    single_word: bool = False

    @property
    def is_blank(self) -> bool:
        """Runs of blanks are tokens for compression, not for control: they count in every text."""
        return not self.is_special and not self.text.strip()


class Encoder(Protocol):
    """Encodes text without added tokens."""

    def encode(self, text: str, is_first: bool) -> list[int]:
        """Return the ids; `is_first` says that `text` begins the whole prompt."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """token_bytes: by id, empty for unused ids. has_dummy_prefix: the encoder puts a blank before every text.

    drops_first_blank: a decoded text leaves out the blank that encoding put in front.

    prefix_ids: what the tokenizer's own post-processor puts before a text. unknown_id may result from plain text.
    """

    encoder: Encoder
    added: tuple[AddedToken, ...]
    token_bytes: list[bytes]
    has_dummy_prefix: bool = False
    drops_first_blank: bool = False
    prefix_ids: tuple[int, ...] = ()
    unknown_id: int | None = None
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        used = max((i for i, b in enumerate(self.token_bytes) if b), default=-1)
        object.__setattr__(self, "num_tokens", used + 1)

    @cached_property
    def matcher(self) -> Matcher:
        return Matcher(token for token in self.added if not token.is_blank)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(token.id for token in self.added if token.is_special)

    @cached_property
    def _forbidden_ids(self) -> frozenset[int]:
        return self.special_ids - {self.unknown_id}

    def encode_plain(self, text: str, is_first: bool = True) -> list[int]:
        """Return the ids of typed text; a vocabulary that makes control tokens of it is refused."""
        if not text:
            return []
        if _SURROGATE.search(text):
            raise vocabulary_error("the text holds half of a surrogate pair, which is no character")
        ids = self.encoder.encode(text, is_first)
        if not self._forbidden_ids.isdisjoint(ids):
            raise vocabulary_error("the vocabulary makes control tokens out of plain text")
        return ids

    def describe(self) -> dict[str, Any]:
        """Return what the client needs to decode and to name tokens, as plain values."""
        blob = b"".join(self.token_bytes[: self.num_tokens])
        lengths = array("I", (len(b) for b in self.token_bytes[: self.num_tokens]))
        return {
            "num_tokens": self.num_tokens,
            "token_bytes": blob,
            "token_lengths": lengths.tobytes(),
            "added": [(token.id, token.text, token.is_special) for token in self.added],
            "drops_first_blank": self.drops_first_blank,
            "prefix_ids": list(self.prefix_ids),
        }


class Matcher:
    """Finds added tokens in text: leftmost first, the longest where several begin at the same place."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.tokens = sorted(tokens, key=lambda token: -len(token.text))
        self._by_text = {token.text: token for token in self.tokens}
        # Without groups: so the regex engine skips every place where no token can begin.
        self._regex = re.compile("|".join(map(_pattern, self.tokens))) if self.tokens else None

    def find(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
        """Yield (start, end, token) of every match, in order; white space that a token eats belongs to it."""
        previous = 0
        for match in self._regex.finditer(text) if self._regex is not None else ():
            token = self._by_text[match[0]]
            start, end = match.span()
            if token.strips_left:
                start = previous + len(text[previous:start].rstrip())
            if token.strips_right and (blank := _BLANK.match(text, end)):
                end = blank.end()
            yield start, end, token
            previous = end


def _pattern(token: AddedToken) -> str:
    pattern = re.escape(token.text)
    return rf"(?<!\w){pattern}(?!\w)" if token.single_word else pattern


def checked_tokens(tokens: Iterable[tuple[str, int]]) -> int:
    """Check ids and lengths of (text, id) pairs; return the highest id."""
    highest = -1
    seen: set[int] = set()
    for text, token_id in tokens:
        if not isinstance(text, str) or not isinstance(token_id, int) or not 0 <= token_id < MAX_TOKENS:
            raise vocabulary_error(
                f"token {str(text)[:40]!r} has the id {token_id!r}, allowed are 0 to {MAX_TOKENS - 1}"
            )
        if len(text) > MAX_TOKEN_CHARS:
            raise vocabulary_error(f"token {token_id} has {len(text)} characters, the limit is {MAX_TOKEN_CHARS}")
        if token_id in seen:
            raise vocabulary_error(f"the id {token_id} is given to two tokens")
        seen.add(token_id)
        highest = max(highest, token_id)
    return highest
