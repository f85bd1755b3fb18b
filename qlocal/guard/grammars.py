"""Compiles what an answer shall follow, and walks a few bytes into it, before the engine gets it.

The engine compiles it once more and has no other limits than the counted ones; what takes the library's worst here, in
time or in memory, never comes so far.
"""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from qlocal.guard.errors import JobError
from qlocal.protocol import GRAMMAR_HEAD, GRAMMAR_LIMITS

MAX_REASON_CHARS = 200
STEPS = 32
"""Bytes of an answer that are tried: rows are widest where an object begins."""


def check(grammar: str) -> None:
    """Raise JobError where a grammar cannot be compiled or is too much to follow."""
    limits = LLParserLimits(**GRAMMAR_LIMITS)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(GRAMMAR_HEAD + grammar, limits=limits)
    if is_error:
        raise JobError("grammar", _reason(messages[0]))
    matcher = LLMatcher(LLTokenizer("byte"), GRAMMAR_HEAD + grammar, log_level=0, limits=limits)
    for _ in range(STEPS):
        byte = _next_byte(matcher.compute_bitmask())
        if matcher.is_error():
            raise JobError("grammar", _reason(matcher.get_error()))
        if byte is None or not matcher.consume_token(byte):
            return


def _reason(message: str) -> str:
    """Return what the library says, without the grammar that it quotes."""
    if message.startswith("NoExtension"):
        return "it allows no answer at all"
    reason = message.partition("\n   1 |")[0].partition("failed to compile JSON schema: ")
    return " ".join((reason[2] or reason[0]).split("<non-verbose/>")[0].split())[:MAX_REASON_CHARS]


def _next_byte(mask: bytes) -> int | None:
    """Return a byte that may come next, no white space where another one may."""
    allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
    return next((byte for byte in allowed if byte > 32), allowed[0] if allowed else None)
