"""The bounds of a client's JSON schema, and the keywords that answers can be held to; any other one is refused by name.

Compiling is the guard's part, which finds what is wrong inside a keyword.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from qlocal.errors import RequestError

MAX_DEPTH = 32
MAX_NODES = 10_000
MAX_BYTES = 64 << 10
WHITE_SPACE = r"[ \t]|\r?\n[ \t]{0,32}"
"""Between tokens of JSON: a blank, or a new line and its indentation. Without an end to it a small model can go on with
blanks until its context is full."""

_ONE = ("items", "additionalItems", "additionalProperties")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = (
    *("type", "enum", "const", "$ref", "required", "pattern", "format", "multipleOf"),
    *("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
)
_NOTES = (
    *("$schema", "$id", "$comment", "$anchor", "title", "description", "default", "example", "examples", "deprecated"),
    *("readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator", "strict", "name"),
)
"""They say something to readers and nothing about what is valid."""
KNOWN = frozenset((*_ONE, *_MANY, *_NAMED, *_VALUES, *_NOTES))


def checked(schema: Any, param: str) -> dict[str, Any]:
    """Return a schema as an object within the bounds. RequestError names the keyword or the limit."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise RequestError(f"{param} is {str(schema)[:40]}, expected a JSON schema as an object", param=param)
    size = len(json.dumps(schema))
    if size > MAX_BYTES:
        raise RequestError(f"{param}: the schema has {size} bytes, the limit is {MAX_BYTES}", param=param)
    if _num_nodes(schema) > MAX_NODES:
        raise RequestError(f"{param}: the schema has more than {MAX_NODES} values", param=param)
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        found, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RequestError(f"{param}: the schema nests deeper than {MAX_DEPTH} levels", param=param)
        if isinstance(found, dict):
            _check_keywords(found, param)
            waiting += [(part, depth + 1) for part in _parts(found)]
    return schema


def as_grammar(schema: dict[str, Any]) -> str:
    """Return what stands for any value of a schema in llguidance's Lark."""
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITE_SPACE}})


def _check_keywords(schema: dict[str, Any], param: str) -> None:
    for keyword in schema:
        is_note = keyword.startswith("x-") and keyword != "x-guidance"
        if keyword not in KNOWN and not is_note:
            raise RequestError(
                f"{param}: the keyword '{keyword[:80]}' of JSON schema is not supported",
                param=param,
                code="unsupported_keyword",
            )


def _parts(schema: dict[str, Any]) -> Iterator[Any]:
    for keyword in schema.keys() & set(_ONE):
        value = schema[keyword]
        yield from value if isinstance(value, list) else [value]
    for keyword in _MANY:
        value = schema.get(keyword)
        yield from value if isinstance(value, list) else []
    for keyword in _NAMED:
        value = schema.get(keyword)
        yield from value.values() if isinstance(value, dict) else []


def _num_nodes(value: Any) -> int:
    count, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return count
