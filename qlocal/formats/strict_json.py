"""JSON from strangers: no duplicate keys, no NaN or infinity, no lone surrogates, bounded size and depth."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from qlocal.errors import FormatError
from qlocal.formats.mapped_file import read_small_file

MAX_CONFIG_BYTES = 4 << 20


def read_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the object in the file `path`; FormatError when it is missing, too large or not an object."""
    return parse_json_object(read_small_file(path, max_bytes), path.name)


def parse_json_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`; every error begins with `where`."""
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate would fail much later otherwise
    except RecursionError as error:
        raise FormatError(f"{where}: is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise FormatError(f"{where}: holds half of a surrogate pair") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise FormatError(f"{where}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{where}: holds {type(value).__name__}, expected an object")
    return value


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
