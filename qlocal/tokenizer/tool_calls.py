"""Reads tool calls out of an answer while it is written: which text is content, which is a call and its arguments.

Two ways of writing calls are known, told apart by the chat template:
    tagged   <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them (Qwen2.5 and others)
    bare     the whole answer is {"name": ..., "parameters": {...}}, more of them after a semicolon (Llama 3.1)
What only looks like a call is content, and nothing of it is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"')
_CALL_KEYS = frozenset({"name", "type", "parameters", "arguments", "function"})


class ToolFormat(Enum):
    """How a model writes its calls."""

    TAGGED = "tagged"
    BARE = "bare"


def format_of(template: str) -> ToolFormat | None:
    """Return how the model of a chat template writes calls; None where the template takes no tools, or is not known."""
    if "tools" not in template:
        return None
    if OPEN in template:
        return ToolFormat.TAGGED
    return ToolFormat.BARE if '"parameters"' in template and "ipython" in template else None


@dataclass(frozen=True)
class Content:
    """Text of the answer that belongs to no call."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """Call `index`, counted from 0, is of the function `name`."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Content | CallBegun | CallArguments


class _State(Enum):
    CONTENT = "content"
    HEAD = "head"
    ARGUMENTS = "arguments"
    TAIL = "tail"


class ToolParser:
    """Reads one answer: `feed` its text as it comes, then `finish`. Joined parts do not depend on how it is cut up."""

    def __init__(self, tool_format: ToolFormat, names: Collection[str]) -> None:
        """names: of the functions that there are. A tagged call of another one is a call all the same."""
        self._is_tagged = tool_format is ToolFormat.TAGGED
        self._names = frozenset(names)
        self._state = _State.CONTENT if self._is_tagged else _State.HEAD
        self._held = ""
        self._value = JsonEnd()
        self._index = -1
        self._follows_call = False
        self.num_complete = 0
        """Calls whose arguments have been read to their end."""

    def feed(self, text: str) -> list[Part]:
        """Take more of the answer; return what is certain by now."""
        self._held += text
        return self._read(is_last=False)

    def finish(self) -> list[Part]:
        """Return what was held back."""
        return self._read(is_last=True)

    def _read(self, is_last: bool) -> list[Part]:
        readers = {
            _State.CONTENT: self._read_content,
            _State.HEAD: self._read_head,
            _State.ARGUMENTS: self._read_arguments,
            _State.TAIL: self._read_tail,
        }
        parts: list[Part] = []
        while True:
            before = (self._state, len(self._held))
            parts += readers[self._state](is_last)
            if (self._state, len(self._held)) == before or not self._held:
                return parts

    def _read_content(self, is_last: bool) -> list[Part]:
        """Pass on text up to the next tag; white space beside calls belongs to them."""
        found = self._held.find(OPEN) if self._is_tagged else -1
        if found >= 0:
            text, self._held = self._held[:found].rstrip(), self._held[found + len(OPEN) :]
            self._state = _State.HEAD
        elif is_last:
            text, self._held = self._held, ""
        else:
            shown = len(self._held) - _overlap(self._held, OPEN)
            shown = len(self._held[:shown].rstrip()) if self._is_tagged else len(self._held)
            text, self._held = self._held[:shown], self._held[shown:]
        if self._follows_call and not text.strip():
            return []
        self._follows_call = False
        return [Content(text)] if text else []

    def _read_head(self, is_last: bool) -> list[Part]:
        """Wait for the name and the beginning of the arguments."""
        head = _HEAD.match(self._held)
        if head is not None and (self._is_tagged or _text(head[1]) in self._names):
            self._held = self._held[head.end() :]
            self._index += 1
            self._state, self._value = _State.ARGUMENTS, JsonEnd()
            return [CallBegun(self._index, _text(head[1]))]
        if not self._is_tagged and not self._may_be_bare(is_last):
            return self._as_content("", self._held)
        end = self._held.find(CLOSE) if self._is_tagged else JsonEnd().end(self._held)
        if end < 0 and not is_last:
            return []
        end = len(self._held) if end < 0 else end
        return self._read_whole(self._held[:end], self._held[end:])

    def _may_be_bare(self, is_last: bool) -> bool:
        """Whether the text can still become a call that no tag announces."""
        text = self._held.lstrip()
        if not text:
            return not is_last
        key = _FIRST_KEY.match(text)
        return text.startswith("{") and (key is None or key[1] in _CALL_KEYS)

    def _read_whole(self, text: str, rest: str) -> list[Part]:
        """Read a call whose keys stand in another order, as one piece; what is none becomes content."""
        call = _call(text)
        if call is None or not (self._is_tagged or call[0] in self._names):
            return self._as_content(OPEN + text if self._is_tagged else text, rest)
        self._index += 1
        self.num_complete += 1
        self._state, self._held = _State.TAIL, rest
        return [CallBegun(self._index, call[0]), CallArguments(self._index, call[1])]

    def _as_content(self, text: str, rest: str) -> list[Part]:
        self._state, self._held = _State.CONTENT, rest
        return [Content(text)] if text else []

    def _read_arguments(self, is_last: bool) -> list[Part]:
        end = self._value.end(self._held)
        if end >= 0:
            text, self._held = self._held[:end], self._held[end:]
            self._state = _State.TAIL
            self.num_complete += 1
        else:
            text, self._held = self._held, ""
        return [CallArguments(self._index, text)] if text else []

    def _read_tail(self, is_last: bool) -> list[Part]:
        """Skip the call's closing brace and tag, and what parts it from the next one."""
        if self._is_tagged:
            found = self._held.find(CLOSE)
            if found < 0 and not is_last:
                return []
            self._held = self._held[found + len(CLOSE) :] if found >= 0 else self._held.lstrip(" \t\r\n}")
            self._state, self._follows_call = _State.CONTENT, True
            return []
        rest = self._held.lstrip(" \t\r\n};,")
        if rest:
            self._held, self._state = rest, _State.HEAD if rest.startswith("{") else _State.CONTENT
        elif is_last:
            self._held = ""
        return []


class JsonEnd:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int:
        """Return the place after the object's last character in the next piece, -1 where it goes on."""
        for place, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place + 1
        return -1


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of `text` may begin `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def _text(literal: str) -> str:
    """Return what a JSON string says; one that cannot be read says itself."""
    try:
        return str(json.loads(literal))
    except ValueError:
        return literal[1:-1]


def _call(text: str) -> tuple[str, str] | None:
    """Return name and arguments, as JSON text, of a whole call."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return value["name"], arguments
    return (value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None
