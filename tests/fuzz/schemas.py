"""Hostile JSON schemas and regular expressions: what a client asks an answer to follow."""

from __future__ import annotations

from random import Random
from typing import Any

from qlocal.errors import QLocalError
from qlocal.guard.client import Guard
from qlocal.server import json_schema
from tests.fuzz.lies import NAMES, VALUES, Liar

_TYPES = ("string", "integer", "number", "boolean", "null", "object", "array", "frog", ["string", "null"], [])
_FORMATS = ("date", "date-time", "uuid", "ipv4", "email", "uri", "hostname", "frog")
_BOUNDS = (0, 1, 2, 7, -1, 0.5, 1e300, 1e-300, 10**9, 1 << 63, -(1 << 70))
_REFERENCES = ("#", "#/$defs/a", "#/$defs/b", "#/definitions/a", "#/properties/a", "http://127.0.0.1:9/x", "file:///x",
               "#/$defs/%61", "#/$defs/a/b", "", "a")  # fmt: skip
_PIECES = (
    "a", "é", "今", ".", "\\d", "\\w", "\\s", "\\b", "^", "$", "|", "(", ")", "(?:", "(?=", "(?!", "(?P<x>", "(?i)",
    "[a-z]", "[^a]", "[", "]", "[z-a]", "{2}", "{0,9}", "{999999}", "{1,1000}", "{2,1}", "*", "+", "?", "*?", "++",
    "\\1", "\\", "\\x{41}", "\\u0041", "\\p{L}", "\\p{Frog}", "\x00", "\x1b", "/", '"', "\n", "&", "~", "\ufffe",
)  # fmt: skip


def pattern(rng: Random) -> str:
    """Return a regular expression, or what only looks like one."""
    text = "".join(rng.choices(_PIECES, k=rng.randrange(1, 14)))
    if rng.random() < 0.2:
        depth = rng.choice((3, 40, 3000))
        text = "(" * depth + text + ")" * depth
    return f"({text})" + "{1,100}" * rng.randrange(4) if rng.random() < 0.2 else text


def schema(rng: Random, depth: int = 0) -> Any:
    """Return a schema whose parts are now and then something else."""
    liar = Liar(rng, 0.06)
    if depth > 4 or rng.random() < 0.05:
        return rng.choice((True, False, {}, {"type": "string"}))
    found: dict[str, Any] = {}
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(10):
            case 0 | 1:
                found["type"] = liar.value(rng.choice(_TYPES))
            case 2:
                found["properties"] = liar.value({name: schema(rng, depth + 1) for name in rng.sample(NAMES, 2)})
                found["required"] = liar.value([rng.choice(NAMES)])
            case 3:
                found["items"] = liar.value(schema(rng, depth + 1))
                found[rng.choice(("minItems", "maxItems"))] = liar.value(rng.choice(_BOUNDS))
            case 4:
                parts = [schema(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 6)))]
                found[rng.choice(("anyOf", "oneOf", "allOf", "prefixItems"))] = liar.value(parts)
            case 5:
                found["pattern"] = liar.value(pattern(rng))
            case 6:
                found[rng.choice(("enum", "const"))] = liar.value(rng.choices(VALUES, k=3))
            case 7:
                found["$defs"] = liar.value({name: schema(rng, depth + 1) for name in ("a", "b")})
                found["$ref"] = liar.value(rng.choice(_REFERENCES))
            case 8:
                found["format"] = liar.value(rng.choice(_FORMATS))
                found[rng.choice(("minLength", "maxLength"))] = liar.value(rng.choice(_BOUNDS))
            case _:
                found[rng.choice(("minimum", "maximum", "exclusiveMinimum", "multipleOf"))] = liar.value(
                    rng.choice(_BOUNDS)
                )
    if rng.random() < 0.03:
        found[rng.choice(("x-guidance", "x-note", "not", "dependentRequired", *NAMES[:6]))] = rng.choice(VALUES)
    return found


def follow_schema(guard: Guard, rng: Random) -> bool:
    """Have a schema checked as a request's is, which ends in one of our sentences where it cannot be followed."""
    return _follow(guard, rng.choice(VALUES) if rng.random() < 0.02 else schema(rng))


def follow_pattern(guard: Guard, rng: Random) -> bool:
    """The same for a pattern alone, which is most of a schema's danger."""
    return _follow(guard, {"type": "string", "pattern": pattern(rng)})


def _follow(guard: Guard, found: Any) -> bool:
    try:
        guard.check_grammar(f"start: {json_schema.as_grammar(json_schema.checked(found, 'schema'))}")
    except QLocalError:
        guard.check_grammar('start: "the next one"')
        raise
    return True
