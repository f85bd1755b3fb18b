"""What an answer must look like, as one grammar: a JSON schema, tool calls, or either of both."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from qlocal.errors import GrammarError, RequestError
from qlocal.server import json_schema
from qlocal.server.requests import ChatRequest
from qlocal.server.text import ModelText
from qlocal.server.tools import Function, Tool
from qlocal.tokenizer.tool_calls import CLOSE, OPEN, ToolFormat

log = logging.getLogger(__name__)
ANY_OBJECT = json_schema.as_grammar({"type": "object"})
_FREE_TAGGED = r"""start: TEXT | head call more
head[lazy]: HEAD
HEAD: /(?s:.*)<tool_call>\n/ & ~/(?s:.*)<tool_call>[^\n](?s:.*)/
TEXT: /(?s:.*)/ & ~/(?s:.*)<tool_call>(?s:.*)/
"""
"""Text in which no call begins, or text up to a tag, and calls."""
_FREE_BARE = r"""start: TEXT | call more
TEXT: /([^{](?s:.*))?/
"""


async def grammar_of(request: ChatRequest, tools: Sequence[Tool], model: ModelText) -> str | None:
    """Return the grammar that an answer follows, None for free text. RequestError names what cannot be followed."""
    value = await _value(request, model)
    is_strict = any(tool.function.strict for tool in tools)
    if not tools or not (request.must_call or is_strict or value is not None):
        return None if value is None else f"start: {value}"
    is_tagged = model.tool_format is ToolFormat.TAGGED
    opening = json.dumps(f"{OPEN}\n") if is_tagged else ""
    if request.must_call:
        start = f"start: {opening} call more\n"
    elif value is not None:
        start = f"start: {opening} call more | value\nvalue: {value}\n"
    else:
        start = _FREE_TAGGED if is_tagged else _FREE_BARE
    functions = [_call(tool.function, await _arguments(tool.function, model), is_tagged) for tool in tools]
    between = f"\n{OPEN}\n" if is_tagged else "; "
    more = f"({json.dumps(between)} call)*" if request.parallel_tool_calls is not False else '""'
    grammar = f"{start}call: {' | '.join(functions)}\nmore: {more}\n"
    await _check(grammar, "tools", model)
    return grammar


async def _value(request: ChatRequest, model: ModelText) -> str | None:
    """Return what stands for the JSON that is asked for."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return ANY_OBJECT
    return await _held_to(wanted.json_schema.json_schema, "response_format.json_schema.schema", model)


async def _arguments(function: Function, model: ModelText) -> str:
    """Return what stands for the arguments of a function. Only a strict one promises to follow its schema."""
    param = f"tools.{function.name}.parameters"
    try:
        return await _held_to(function.parameters or {"type": "object"}, param, model)
    except RequestError as error:
        if function.strict:
            raise
        log.warning("the arguments of '%s' are held to be an object and no more: %s", function.name, error)
        return ANY_OBJECT


async def _held_to(schema: object, param: str, model: ModelText) -> str:
    value = json_schema.as_grammar(json_schema.checked(schema, param))
    await _check(f"start: {value}", param, model)
    return value


def _call(function: Function, arguments: str, is_tagged: bool) -> str:
    key, end = ("arguments", f"}}\n{CLOSE}") if is_tagged else ("parameters", "}")
    head = f'{{"name": {json.dumps(function.name)}, "{key}": '
    return f"{json.dumps(head)} {arguments} {json.dumps(end)}"


async def _check(grammar: str, param: str, model: ModelText) -> None:
    try:
        await model.check_grammar(grammar)
    except GrammarError as error:
        raise RequestError(f"{param} cannot be followed: {error}", param=param, code="unsupported_schema") from error
