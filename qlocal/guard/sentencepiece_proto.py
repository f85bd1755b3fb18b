"""The few fields of SentencePiece's ModelProto (protobuf) that are needed: read pieces, write a model.

Reading keeps every field that is not a piece as it is. Numbers of the fields are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qlocal.guard.errors import vocabulary_error

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_ADD_DUMMY_PREFIX = 3
_BPE = 2


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its position."""

    text: str
    score: float
    kind: int = NORMAL


@dataclass(frozen=True)
class Model:
    """pieces: in order of ids. rest: the other top-level fields, encoded. has_dummy_prefix: from the normalizer."""

    pieces: list[Piece]
    rest: bytes
    has_dummy_prefix: bool

    def encode(self) -> bytes:
        """Return the protobuf message."""
        return b"".join(_field(_PIECES, _piece_bytes(piece)) for piece in self.pieces) + self.rest

    def with_pieces(self, pieces: list[Piece]) -> Model:
        return replace(self, pieces=pieces)


def parse(data: bytes) -> Model:
    """Return the model in `data`; JobError when it is not a well-formed message."""
    pieces, rest, has_dummy_prefix = [], [], True
    for number, wire, value, raw in _fields(data):
        if number == _PIECES and isinstance(value, bytes):
            pieces.append(_parse_piece(value))
            continue
        rest.append(raw)
        if number == _NORMALIZER and isinstance(value, bytes):
            settings = {n: v for n, w, v, _ in _fields(value) if w == _VARINT}
            has_dummy_prefix = bool(settings.get(_ADD_DUMMY_PREFIX, 1))
        del wire
    if not pieces:
        raise vocabulary_error("the SentencePiece model holds no pieces")
    return Model(pieces, b"".join(rest), has_dummy_prefix)


def bpe_model(pieces: list[Piece], has_dummy_prefix: bool) -> Model:
    """Return a byte-pair model without normalization, as llama's are; byte fallback where there are byte pieces."""
    has_bytes = any(piece.kind == BYTE for piece in pieces)
    trainer = _number(3, _BPE) + _number(4, len(pieces)) + _number(35, has_bytes)
    normalizer = _field(1, b"identity") + _number(_ADD_DUMMY_PREFIX, has_dummy_prefix) + _number(4, 0) + _number(5, 1)
    return Model(pieces, _field(_TRAINER, trainer) + _field(_NORMALIZER, normalizer), has_dummy_prefix)


def _parse_piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, _, value, _ in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _piece_bytes(piece: Piece) -> bytes:
    score = _varint(2 << 3 | _FIXED32) + struct.pack("<f", piece.score)
    return _field(1, piece.text.encode("utf-8", "replace")) + score + _number(3, piece.kind)


def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes, bytes]]:
    """Yield (number, wire type, value, raw bytes) of each field of a message."""
    position = 0
    while position < len(data):
        start = position
        key, position = _read_varint(data, position)
        wire = key & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = _read_varint(data, position)
        else:
            if wire == _BYTES:
                size, position = _read_varint(data, position)
            elif wire in (_FIXED32, _FIXED64):
                size = 4 if wire == _FIXED32 else 8
            else:
                raise vocabulary_error(f"the SentencePiece model has a field of wire type {wire} at byte {start}")
            if position + size > len(data):
                raise vocabulary_error(f"the SentencePiece model is cut off: a field at byte {start} ends past its end")
            value, position = data[position : position + size], position + size
        yield key >> 3, wire, value, data[start:position]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise vocabulary_error(f"the SentencePiece model has a malformed number at byte {position}")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(int(value))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
