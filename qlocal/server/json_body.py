"""Strict JSON of a request body: what Python's parser lets pass and a later step would trip over is refused here."""

from __future__ import annotations

import json
from typing import Any

from qlocal.errors import RequestError

MAX_DEPTH = 64


def parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`; RequestError for anything else, doubled keys and NaN included."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise RequestError(f"the body nests deeper than {MAX_DEPTH} levels") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8: byte {error.start} cannot be decoded") from error
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestError(f"the body is a JSON {type(value).__name__}, expected an object")
    _check_nesting_and_text(value)
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{doubled}' stands twice in one object")
    return values


def _check_nesting_and_text(value: Any) -> None:
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RequestError(f"the body nests deeper than {MAX_DEPTH} levels")
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, dict):
            waiting.extend((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            waiting.extend((part, depth + 1) for part in item)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError("the body holds half of a surrogate pair, which is no character") from error
