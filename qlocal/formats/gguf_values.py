"""The values of GGUF metadata and their types; shared by reader and writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 63
"""llama.cpp keeps tensor names in 64 bytes, a closing zero included."""


class ValueType(IntEnum):
    """Type number of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_CODES = {
    ValueType.UINT8: "B", ValueType.INT8: "b", ValueType.UINT16: "H", ValueType.INT16: "h", ValueType.UINT32: "I",
    ValueType.INT32: "i", ValueType.FLOAT32: "f", ValueType.BOOL: "?", ValueType.UINT64: "Q", ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}  # fmt: skip
"""struct's letter of each fixed-size type."""


@dataclass(frozen=True, slots=True)
class MetaValue:
    """One metadata value. element: the type of the elements when `kind` is ARRAY, and then `value` is a list."""

    kind: ValueType
    value: Any
    element: ValueType | None = None


def text(value: str) -> MetaValue:
    return MetaValue(ValueType.STRING, value)


def uint32(value: int) -> MetaValue:
    return MetaValue(ValueType.UINT32, value)


def uint16(value: int) -> MetaValue:
    return MetaValue(ValueType.UINT16, value)


def int32(value: int) -> MetaValue:
    return MetaValue(ValueType.INT32, value)


def float32(value: float) -> MetaValue:
    return MetaValue(ValueType.FLOAT32, value)


def flag(value: bool) -> MetaValue:
    return MetaValue(ValueType.BOOL, value)


def array(element: ValueType, values: Sequence[Any]) -> MetaValue:
    return MetaValue(ValueType.ARRAY, list(values), element)


def padded(position: int, alignment: int) -> int:
    """Return the next multiple of `alignment` from `position` on."""
    return -(-position // alignment) * alignment
