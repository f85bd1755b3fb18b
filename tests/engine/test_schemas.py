"""Whatever a grammar lets through is valid by another judge: the jsonschema package.

Answers are drawn at random among the tokens that are allowed, which finds what a model would rarely write.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qlocal.engine.constraint import Grammars
from qlocal.guard import grammars as guarded
from qlocal.server.json_schema import as_grammar, checked
from tests.engine.vocabulary import END, NUM_TOKENS, TOKENS, vocabulary

STRINGS: list[Any] = [
    {"type": "string", "maxLength": 5},
    {"type": "string", "minLength": 2, "maxLength": 3},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"enum": ["a", 'b"c', "ü", 1, None, {"d": [1]}]},
    {"const": {"x": [True]}},
    {"type": "boolean"},
    {"type": "null"},
]
ROOT = 3
"""Levels of a schema that is made up; a reference names a place from the root."""
NUMBERS: list[Any] = [
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    {"type": "number", "minimum": 0.5, "maximum": 2},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100},
    {"type": ["integer", "null"], "minimum": 1, "maximum": 2},
]


def compound(rng: random.Random, depth: int) -> Any:
    """Make up a schema."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(STRINGS + NUMBERS)
    kind = rng.randrange(6)
    parts = [compound(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    if kind == 0:
        return {"anyOf": parts}
    if kind == 1:
        low = rng.randint(0, 2)
        return {"type": "array", "items": parts[0], "minItems": low, "maxItems": low + rng.randint(0, 2)}
    if kind == 2:
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    names = rng.sample(["name", "age", "ü", "a b", "true"], len(parts))
    found = {
        "type": "object",
        "properties": dict(zip(names, parts, strict=True)),
        "required": names[: rng.randint(0, len(names))],
        "additionalProperties": False,
    }
    if kind == 3 and depth == ROOT:
        return {"$defs": {"part": found}, "type": "object", "properties": {"p": {"$ref": "#/$defs/part"}},
                "required": ["p"], "additionalProperties": False}  # fmt: skip
    if kind == 4:
        return found | {"additionalProperties": rng.choice(STRINGS)}
    return found


def draw(grammars: Grammars, grammar: str, rng: random.Random) -> str | None:
    """Return a whole answer drawn at random, None for one that does not end in time."""
    constraint = grammars.constraint(grammar, [END], NUM_TOKENS, [])
    text = b""
    for _ in range(400):
        allowed = constraint.allowed()
        assert allowed is not None, "matching takes little work here"
        choices = [int(i) for i in allowed.nonzero()[0]]
        # Ends are taken early and characters of plain text preferred, so that answers become short.
        plain = [i for i in choices if i == END or TOKENS[i][:1] in b'"}],:0123456789abcdefghijklmnopqrstuvwxyz-.{[']
        token_id = END if END in choices and rng.random() < 0.5 else rng.choice(plain or choices)
        if token_id == END:
            return text.decode()
        text += TOKENS[token_id]
        assert constraint.take(token_id)
        if constraint.is_complete:
            return text.decode()
    return None


@pytest.mark.parametrize("seed", range(120))
def test_what_a_schema_lets_through_is_valid(seed: int) -> None:
    rng = random.Random(seed)
    schema = compound(rng, ROOT)
    grammar = f"start: {as_grammar(checked(schema, 'here'))}"
    guarded.check(grammar)
    grammars = Grammars(vocabulary())
    for _ in range(3):
        text = draw(grammars, grammar, rng)
        if text is not None:
            Draft202012Validator(schema).validate(json.loads(text))


def test_most_answers_end() -> None:
    grammars = Grammars(vocabulary())
    rng = random.Random(0)
    ended = [draw(grammars, f"start: {as_grammar(compound(rng, ROOT))}", rng) is not None for _ in range(40)]
    assert sum(ended) > 30
