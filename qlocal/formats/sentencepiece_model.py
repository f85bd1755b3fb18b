"""The pieces of a sentencepiece `tokenizer.model`, read from its protobuf bytes directly.

A writer of GGUF files needs texts, scores and types alone; a stranger's file is not worth a C++ parser for that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from qlocal.errors import TokenizerError

MAX_PIECES = 1 << 22
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_PIECES, _MODEL_NORMALIZER = 1, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_NORMALIZER_DUMMY_PREFIX = 3


@dataclass(frozen=True)
class Piece:
    """kind: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; GGUF has the same numbers."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """add_space_prefix: whether a space is put before a text that begins without one."""

    pieces: list[Piece]
    add_space_prefix: bool


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Return the pieces in id order; TokenizerError when the bytes are no sentencepiece model."""
    try:
        pieces, add_space_prefix = [], True
        for field, value in _fields(data):
            if field == _MODEL_PIECES and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif field == _MODEL_NORMALIZER and isinstance(value, bytes):
                for inner, flag in _fields(value):
                    if inner == _NORMALIZER_DUMMY_PREFIX:
                        add_space_prefix = flag != 0
    except (ValueError, IndexError, struct.error) as error:
        raise TokenizerError(f"tokenizer.model: is not a sentencepiece model: {error}") from error
    if not pieces or len(pieces) > MAX_PIECES:
        raise TokenizerError(f"tokenizer.model: holds {len(pieces)} pieces, expected 1 to {MAX_PIECES}")
    return SentencePieceModel(pieces, add_space_prefix)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(data):
        if field == _PIECE_TEXT and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == _PIECE_SCORE and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == _PIECE_TYPE and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6 or score != score:
        raise ValueError(f"piece {text[:40]!r} has type {kind} and score {score}")
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of one protobuf message: an int for varints, else the bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"{length} bytes expected at byte {position} of {len(data)}")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"a number of more than 10 bytes at byte {position}")
