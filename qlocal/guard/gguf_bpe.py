"""Byte-level BPE vocabularies of GGUF files (`tokenizer.ggml.model` = gpt2)."""

from __future__ import annotations

from qlocal.guard.bpe import BpeSpec, build, parse_merges
from qlocal.guard.errors import vocabulary_error
from qlocal.guard.split_rules import IGNORES_MERGES, NORMALIZES_NFC, PRE_TOKENIZERS
from qlocal.guard.vocabulary import AddedToken, Vocabulary

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5


def load(pre: str, tokens: list[str], token_types: list[int], merges: list[str] | None) -> Vocabulary:
    """Return the vocabulary of the lists; JobError when the split rule is unknown or the lists disagree."""
    if pre not in PRE_TOKENIZERS:
        raise vocabulary_error(f"'tokenizer.ggml.pre' is {pre[:60]!r}, known are {', '.join(sorted(PRE_TOKENIZERS))}")
    if merges is None:
        raise vocabulary_error("'tokenizer.ggml.merges' is missing")
    check_lengths(tokens, token_types)
    added = added_tokens(tokens, token_types)
    return build(
        BpeSpec(
            tokens=_numbered(tokens, token_types),
            merges=parse_merges(merges),
            added=added,
            is_byte_level=True,
            normalizer={"type": "NFC"} if pre in NORMALIZES_NFC else None,
            pre_tokenizer=PRE_TOKENIZERS[pre],
            options={"ignore_merges": True} if pre in IGNORES_MERGES else {},
        )
    )


def check_lengths(tokens: list[str], token_types: list[int]) -> None:
    """Refuse lists that do not belong together."""
    if len(tokens) != len(token_types):
        raise vocabulary_error(
            f"'tokenizer.ggml.tokens' has {len(tokens)} entries and 'tokenizer.ggml.token_type' {len(token_types)}"
        )


def added_tokens(tokens: list[str], token_types: list[int]) -> tuple[AddedToken, ...]:
    """Return control and user-defined tokens, without the fill for embedding rows that have no token."""
    return tuple(
        AddedToken(token_id, text, is_special=kind == CONTROL)
        for token_id, (text, kind) in enumerate(zip(tokens, token_types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and text and not is_fill(token_id, text)
    )


def is_fill(token_id: int, text: str) -> bool:
    """Say whether a token only fills a row: newer files mark those as unused, older ones as user-defined."""
    return text == f"[PAD{token_id}]"


def _numbered(tokens: list[str], token_types: list[int]) -> dict[str, int]:
    used = [(t, k) for k, (t, kind) in enumerate(zip(tokens, token_types, strict=True)) if kind != UNUSED]
    numbered = {text: token_id for text, token_id in used if not is_fill(token_id, text)}
    if len(numbered) != sum(not is_fill(token_id, text) for text, token_id in used):
        raise vocabulary_error("'tokenizer.ggml.tokens' holds the same token twice")
    return numbered
