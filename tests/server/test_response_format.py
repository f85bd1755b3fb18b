"""Answers that are held to JSON: refusals here; what an engine makes of it is tested with the engine."""

from __future__ import annotations

from typing import Any

import pytest

from qlocal.server import json_schema
from qlocal.server.text import MAX_CHECKED, ModelText
from tests.server.conftest import Running, open_fake_text
from tests.server.test_chat import URL, ask


def schema_of(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


GOOD: list[Any] = [
    {"type": "text"},
    {"type": "json_object"},
    schema_of({"type": "object"}, strict=True),
    schema_of({}),
    schema_of(True),
    schema_of(nested(20)),
    schema_of({"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}),
    schema_of({"title": "T", "description": "d", "default": 1, "examples": [2], "x-order": 3, "type": "integer"}),
    schema_of({"anyOf": [{"type": "string", "format": "date"}, {"type": "number", "minimum": 0.5}]}),
    schema_of({"properties": {"not": {"type": "string"}, "if": {"const": {"else": 1}}}}),
]


@pytest.mark.parametrize("wanted", GOOD)
def test_formats_that_can_be_followed_are_accepted(server: Running, wanted: Any) -> None:
    with server.client() as client:
        response = client.post(URL, json=ask("{}", response_format=wanted))
    assert response.status_code == 200, response.text


BAD: list[tuple[Any, str]] = [
    ("json", "response_format"),
    ({}, "type"),
    ({"type": "xml"}, "type"),
    ({"type": "json_schema"}, "json_schema"),
    ({"type": "json_object", "json_schema": {"schema": {}}}, "json_schema"),
    ({"type": "json_schema", "json_schema": {"name": "a"}}, "schema"),
    (schema_of("a"), "schema"),
    (schema_of(False), "schema"),
    (schema_of(nested(25) | {"type": ["frog"]}), "frog"),
    (schema_of({"properties": {f"k{i}": True for i in range(10_001)}}), "limit is 65536"),
    (schema_of({"enum": ["x" * 70_000]}), "limit is 65536"),
    (schema_of({"enum": list(range(10_001))}), "10000"),
    (schema_of({"pattern": "(" * 30_000 + ")" * 30_000}), "regex"),
    (schema_of({"pattern": "^(?=a)b$"}), "look-ahead"),
    (schema_of({"$ref": "http://example.com/schema"}), "fetch"),
    (schema_of({"$ref": "#/nowhere"}), "nowhere"),
    (schema_of({"$ref": "#"}), "no answer"),
    (schema_of({"format": "frog", "type": "string"}), "frog"),
    (schema_of({"type": "integer", "minimum": 3, "maximum": 2}), "cannot be followed"),
    (schema_of({"\x1b]0;x\x07": True}), r"'\x1b]0;x\x07' of JSON schema"),  # clients print it to a terminal
]
KEYWORDS = ["not", "if", "then", "else", "contains", "uniqueItems", "dependentRequired", "dependentSchemas"]
KEYWORDS += ["propertyNames", "unevaluatedProperties", "$dynamicRef", "minContains", "x-guidance", "frog"]


@pytest.mark.parametrize(("wanted", "words"), BAD)
def test_formats_that_cannot_be_followed_say_why(server: Running, wanted: Any, words: str) -> None:
    with server.client() as client:
        response = client.post(URL, json=ask("a", response_format=wanted))
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert words in error["message"] and error["param"].startswith("response_format"), error
        assert len(error["message"]) < 600
        assert client.post(URL, json=ask("a")).status_code == 200


@pytest.mark.parametrize("place", [[], ["properties", "a"], ["items"], ["anyOf", 0], ["$defs", "a"]])
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_keywords_that_cannot_be_followed_are_named_wherever_they_stand(keyword: str, place: list[Any]) -> None:
    schema: Any = {keyword: {}}
    for step in reversed(place):
        schema = [schema] if step == 0 else {step: schema}
    with pytest.raises(Exception, match=f"'{keyword}'".replace("$", r"\$")):
        json_schema.checked(schema, "here")


def test_depth_is_counted_in_schemas() -> None:
    json_schema.checked(nested(json_schema.MAX_DEPTH), "here")
    with pytest.raises(Exception, match="deeper than 32"):
        json_schema.checked(nested(json_schema.MAX_DEPTH + 1), "here")


async def _ask_again(model: ModelText) -> list[int]:
    counts = []
    for _ in range(2):
        for i in range(3):
            await model.check_grammar(f'start: "{i}"')
        counts.append(len(model._checked))
    for i in range(2 * MAX_CHECKED):
        await model.check_grammar(f'start: "{i}"')
    return [*counts, len(model._checked)]


def test_a_grammar_is_checked_once_and_few_are_remembered(tmp_path: Any) -> None:
    import asyncio

    model = open_fake_text("echo", tmp_path)
    assert asyncio.run(_ask_again(model)) == [3, 3, MAX_CHECKED]
