"""The loop model, tools, model: one stream of events out of all its requests."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from qlocal.chat.events import AnswerEvent, Done, Failure, TextDelta, ToolCallDelta, ToolRound
from qlocal.chat.tools.base import Round, Tool, ToolCall, ToolError, ToolResult

MAX_ROUNDS = 8
"""Rounds of calls within one answer; a model that wants more is going in circles."""
REFUSED = "the user refused this call"
"""What the model is told."""

Request = list[dict[str, Any]]
Ask = Callable[[Request, dict[str, Any]], AsyncGenerator[AnswerEvent, None]]
"""Sends a conversation with options and yields the events of its answer."""
Allow = Callable[[Tool, ToolCall], Awaitable[str | None]]
"""Returns None where a call may be done, else the sentence that the model is told instead."""


def offered(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Return tools as a request offers them."""
    return [
        {
            "type": "function",
            "function": {"name": one.name, "description": one.description, "parameters": dict(one.parameters)},
        }
        for one in tools
    ]


async def with_tools(
    ask: Ask, request: Request, options: Mapping[str, Any], tools: Sequence[Tool], allow: Allow, begun_chars: int = 0
) -> AsyncGenerator[AnswerEvent, None]:
    """Yield the events of an answer; where it calls tools, these are done and the model goes on.

    begun_chars: of the answer's text that is there already. After the last round no tools are offered, so that the
    model says what it has."""
    known = {tool.name: tool for tool in tools}
    messages, length = list(request), begun_chars
    for number in range(MAX_ROUNDS + 1):
        wanted = dict(options) if number == 0 else {k: v for k, v in options.items() if k not in _BEGINNING}
        if tools and number < MAX_ROUNDS:
            wanted["tools"] = offered(tools)
        calls: dict[int, ToolCall] = {}
        said: list[str] = []
        ending: Done | None = None
        async with aclosing(ask(messages, wanted)) as events:
            async for event in events:
                match event:
                    case ToolCallDelta():
                        calls[event.index] = _joined(calls.get(event.index), event)
                        continue
                    case TextDelta(text):
                        said.append(text)
                    case Done():
                        ending = event
                        continue
                    case Failure():
                        yield event
                        return
                yield event
        length += sum(map(len, said))
        if not calls:
            yield ending or Done("stop")
            return
        one = Round(length, list(calls.values()), [await _result(call, known, allow) for call in calls.values()])
        yield ToolRound(one)
        messages += one.messages("".join(said))
    yield Done("length")


_BEGINNING = frozenset({"answer_start_ids", "continue_final_message"})
"""Options of a begun answer: they hold for the first request alone."""


def _joined(call: ToolCall | None, delta: ToolCallDelta) -> ToolCall:
    if call is None:
        return ToolCall(delta.call_id or f"call_{delta.index}", delta.name or "", delta.arguments)
    return ToolCall(call.call_id, call.name or delta.name or "", call.arguments + delta.arguments)


async def _result(call: ToolCall, known: Mapping[str, Tool], allow: Allow) -> ToolResult:
    tool = known.get(call.name)
    try:
        if tool is None:
            raise ToolError(f"there is no tool '{call.name[:100]}'; there are: {', '.join(known)}")
        values = call.values()
        if (refused := await allow(tool, call)) is not None:
            raise ToolError(refused)
        return ToolResult(call.call_id, call.name, await tool.run(values))
    except ToolError as error:
        return ToolResult(call.call_id, call.name, json.dumps({"error": str(error)}, ensure_ascii=False), is_error=True)
