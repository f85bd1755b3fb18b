"""Holds what the server sends against its own document, closed: fields that it does not tell are errors."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from qlocal.server import openapi

ERROR = {"$ref": "#/components/schemas/Error"}


def check_response(response: httpx.Response) -> None:
    """Read a JSON response and hold it against the document; as an event hook it sees every one of a client."""
    if not response.headers.get("content-type", "").startswith("application/json"):
        assert response.status_code in (200, 499), response
        return
    response.read()
    if response.request.method != "OPTIONS":
        _validate(_schema_of(response), response.json())


def check_event(path: str, event: Any) -> None:
    """Hold one event of a stream against the document."""
    content = _document()["paths"][path]["post"]["responses"]["200"]["content"]
    _validate(content["text/event-stream"]["x-event"], event)


def _schema_of(response: httpx.Response) -> dict[str, Any]:
    operation = _operation(response.request.method.lower(), response.request.url.path)
    if operation is None or response.status_code >= 400:
        assert response.status_code >= 400, "the document tells every route that answers"
        return ERROR
    schema: dict[str, Any] = operation["responses"][str(response.status_code)]["content"]["application/json"]["schema"]
    return schema


def _operation(method: str, path: str) -> Any:
    for template, operations in _document()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", ".+", template), path):
            return operations.get(method)
    return None


@cache
def _document() -> dict[str, Any]:
    document = copy.deepcopy(openapi.document())
    for name in openapi.RESPONSES:
        _close(document["components"]["schemas"][name])
    return document


def _close(schema: Any) -> None:
    if isinstance(schema, dict):
        if "properties" in schema:
            schema["additionalProperties"] = False
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)


def _validate(schema: dict[str, Any], value: Any) -> None:
    whole = {**schema, "components": _document()["components"]}
    problems = [f"{error.json_path}: {error.message[:300]}" for error in Draft202012Validator(whole).iter_errors(value)]
    assert not problems, problems
