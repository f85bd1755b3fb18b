"""Grammars are compiled under the guard's limits before an engine sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from qlocal.errors import GrammarError
from qlocal.guard.client import Guard


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with Guard() as running:
        yield running


def combined(count: int) -> dict[str, Any]:
    branches = [
        {"anyOf": [{"type": "object", "properties": {f"a{i}_{j}": {"type": "string"}}} for j in range(count)]}
        for i in range(count)
    ]
    return {"allOf": branches}


HOSTILE: dict[str, Any] = {
    "many properties": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(9_000)}},
    "a huge multiple": {"type": "integer", "multipleOf": 9_999_991, "minimum": -(10**17), "maximum": 10**17},
    "a product of choices": combined(6),
    "30,000 brackets": {"type": "string", "pattern": "(" * 30_000 + ")" * 30_000},
    "no answer": {"$ref": "#"},
    "two that point at each other": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "look-ahead": {"type": "string", "pattern": "^(?=a)b$"},
    "an unknown type": {"type": "frog"},
    "an unknown format": {"type": "string", "format": "frog"},
    "a page of the web": {"$ref": "http://127.0.0.1:9/schema"},
    "a file": {"$ref": "file:///etc/passwd"},
}
HARMLESS: dict[str, Any] = {
    "long strings": {"type": "string", "maxLength": 10**9},
    "nested repeats": {"type": "string", "pattern": "^(([a-z]{1,1000}){1,1000}){1,1000}$"},
    "what Python would backtrack in": {"type": "string", "pattern": "^(a+)+$"},
    "long arrays": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "500 properties": {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(500)}},
    "a tree": {
        "$defs": {"n": {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}},
        "$ref": "#/$defs/n",
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_schemas_that_cannot_be_followed_are_refused_in_one_line(guard: Guard, name: str) -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(GrammarError) as caught:
        guard.check_grammar(f"start: %json {json.dumps(HOSTILE[name])}")
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 300
    assert psutil.Process().memory_info().rss - before < 20 << 20
    guard.check_grammar('start: "the next one"')


@pytest.mark.parametrize("name", HARMLESS)
def test_schemas_that_only_look_large_are_accepted(guard: Guard, name: str) -> None:
    guard.check_grammar(f"start: %json {json.dumps(HARMLESS[name])}")


@pytest.mark.parametrize("grammar", ["", 'start: "a', "start: other", "start: /(/", 'begin: "a"', "start: \x00"])
def test_grammars_that_are_none_are_refused(guard: Guard, grammar: str) -> None:
    with pytest.raises(GrammarError):
        guard.check_grammar(grammar)
