"""SentencePiece vocabularies: `tokenizer.model` of a folder, and GGUF's lists (`tokenizer.ggml.model` = llama)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import sentencepiece

from qlocal.guard import sentencepiece_proto as proto
from qlocal.guard.bpe import sentencepiece_bytes
from qlocal.guard.errors import vocabulary_error
from qlocal.guard.gguf_bpe import check_lengths, is_fill
from qlocal.guard.vocabulary import AddedToken, Vocabulary, checked_tokens


def load(data: bytes, added_tokens: Mapping[int, tuple[str, bool]]) -> Vocabulary:
    """Return the vocabulary of a tokenizer.model; `added_tokens` are those of the folder's JSON files."""
    return _build(proto.parse(data), added_tokens)


def load_gguf(
    tokens: list[str], token_types: list[int], scores: list[float] | None, has_dummy_prefix: bool
) -> Vocabulary:
    """Return the vocabulary of a GGUF file's lists, by writing them as a SentencePiece model."""
    check_lengths(tokens, token_types)
    if scores is None or len(scores) != len(tokens):
        raise vocabulary_error("'tokenizer.ggml.scores' is missing or not as long as the list of tokens")
    if not all(map(math.isfinite, scores)):
        raise vocabulary_error("'tokenizer.ggml.scores' holds a value that is no finite number")
    pieces = [
        proto.Piece(text, score, proto.UNUSED if is_fill(token_id, text) else kind)
        for token_id, (text, score, kind) in enumerate(zip(tokens, scores, token_types, strict=True))
    ]
    return _build(proto.bpe_model(pieces, has_dummy_prefix), {})


def _build(model: proto.Model, given: Mapping[int, tuple[str, bool]]) -> Vocabulary:
    added = _added_tokens(model.pieces, given)
    checked_tokens((token.text, token.id) for token in added)
    unknown = next((k for k, piece in enumerate(model.pieces) if piece.kind == proto.UNKNOWN), None)
    return Vocabulary(
        encoder=_Encoder(model.with_pieces([_without_match(piece) for piece in model.pieces])),
        added=added,
        token_bytes=_token_bytes(model.pieces, added),
        has_dummy_prefix=model.has_dummy_prefix,
        drops_first_blank=model.has_dummy_prefix,
        unknown_id=unknown,
    )


class _Encoder:
    def __init__(self, model: proto.Model) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.encode())
        except RuntimeError as error:
            raise vocabulary_error(f"the SentencePiece model is refused by its library: {error}") from error

    def encode(self, text: str, is_first: bool) -> list[int]:
        del is_first  # the blank in front comes with every piece of a prompt
        ids: list[int] = self._processor.encode(text)
        return ids


def _without_match(piece: proto.Piece) -> proto.Piece:
    """Turn user-defined pieces into control pieces, which the library does not match in text: `chat` does that."""
    if piece.kind == proto.USER_DEFINED and piece.text.strip(" \u2581\n\t"):
        return replace(piece, kind=proto.CONTROL)
    return piece


def _added_tokens(pieces: list[proto.Piece], given: Mapping[int, tuple[str, bool]]) -> tuple[AddedToken, ...]:
    added = {
        token_id: AddedToken(token_id, piece.text, is_special=piece.kind != proto.USER_DEFINED)
        for token_id, piece in enumerate(pieces)
        if piece.kind in (proto.UNKNOWN, proto.CONTROL, proto.USER_DEFINED) and piece.text
    }
    for token_id, (text, is_special) in given.items():
        added[token_id] = AddedToken(token_id, text, is_special=is_special)
    return tuple(added[token_id] for token_id in sorted(added))


def _token_bytes(pieces: list[proto.Piece], added: tuple[AddedToken, ...]) -> list[bytes]:
    table = [b""] * (max(len(pieces) - 1, *(token.id for token in added), 0) + 1)
    for token_id, piece in enumerate(pieces):
        if piece.kind != proto.UNUSED:
            table[token_id] = sentencepiece_bytes(piece.text)
    for token in added:
        table[token.id] = sentencepiece_bytes(token.text) if token.is_blank else token.text.encode("utf-8", "replace")
    return table
