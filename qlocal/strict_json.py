"""JSON from strangers: no duplicate keys, no NaN or infinity, no lone surrogates, bounded depth and bounded memory."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from qlocal.errors import FormatError

MAX_DEPTH = 64
MAX_MEMORY_BYTES = 224 << 20
"""What parsing may take at most, by the estimate of `_memory`; the largest real tokenizer.json stays below it."""
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`; FormatError begins with `where`."""
    needed = _memory(data)
    if needed > MAX_MEMORY_BYTES:
        raise FormatError(
            f"{where}: {len(data)} bytes of JSON would take up to {needed} bytes of memory, "
            f"at most {MAX_MEMORY_BYTES} are accepted"
        )
    try:
        text = data.decode("utf-8")
        _refuse_lone_surrogates(text, where)
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise FormatError(f"{where}: is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise FormatError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: holds {type(value).__name__}, expected an object")
    _check_depth(value, where)
    return value


def _memory(data: bytes) -> int:
    """Return what parsing `data` can take at most: bytes, text, values. Counting costs next to nothing.

    The weights are CPython's sizes of a small object, a list, an entry and a key, measured on the worst of each.
    """
    width = 1 if data.isascii() else 4 if re.search(rb"[\xf0-\xff]", data) else 2
    values = 184 * data.count(b"{") + 88 * data.count(b"[") + 72 * data.count(b",") + 150 * data.count(b":")
    return (1 + 2 * width) * len(data) + values


def _refuse_lone_surrogates(text: str, where: str) -> None:
    """They would fail much later, when the text is encoded."""
    if _ESCAPED_SURROGATE.search(text) and _LONE_SURROGATE.search(text.replace(r"\\", "--")):
        raise FormatError(f"{where}: holds half of a surrogate pair")


def _check_depth(value: dict[str, Any], where: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise FormatError(f"{where}: is nested more than {MAX_DEPTH} levels deep")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:60]!r} appears twice")
    return values


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:60]} is out of range")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")
