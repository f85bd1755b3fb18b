"""The messages of a conversation as clients send them, and as chat templates expect them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import model_validator

from qlocal.server.request_base import Body, Text


class TextPart(Body):
    """One part of a message's content; only text can be read here."""

    type: str
    text: Text | None = None


class ChatMessage(Body):
    """One message; content None is allowed beside tool calls of an earlier answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        if isinstance(self.content, list):
            for part in self.content:
                if part.type != "text" or part.text is None:
                    raise ValueError(f"content parts of type '{part.type}' are not supported, only text")
        return self

    @property
    def text(self) -> str:
        """What it says, in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""

    def plain(self) -> dict[str, Any]:
        """Return the message as templates expect it: text joined, `developer` as `system`."""
        content = None if self.content is None else self.text
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        calls = [_with_arguments(call) for call in self.tool_calls or []]
        extra = {"tool_calls": calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return message | {name: value for name, value in extra.items() if value}


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object: templates write them as JSON once more."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call  # what the model wrote was no JSON; the template shows it as it was
    return {**call, "function": {**function, "arguments": arguments}}
