"""A vocabulary for tiny models of 320 rows: single bytes, some longer tokens, and control tokens at the end."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from qlocal.protocol import Vocabulary

LONGER = [b'{"', b'": ', b'", "', b"}\n", b"true", b"null", b"  ", b"name", b'"}', b"[1", b", 2", b"</", b"ab"]
SPECIAL = [b"<|end|>", b"<|turn|>", b"<|other|>"]
TOKENS = [bytes([i]) for i in range(256)] + LONGER + SPECIAL
END, TURN, OTHER = range(len(TOKENS) - 3, len(TOKENS))
NUM_TOKENS = len(TOKENS)


def vocabulary() -> Vocabulary:
    lengths = array("I", map(len, TOKENS)).tobytes()
    return Vocabulary(b"".join(TOKENS), lengths, [END, TURN, OTHER], [END, TURN])


def text(token_ids: Iterable[int]) -> str:
    return b"".join(TOKENS[i] for i in token_ids).decode("utf-8", "replace")
