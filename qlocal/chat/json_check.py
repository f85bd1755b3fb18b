"""Whether a text that is being written can become JSON: a character at a time, never from the start again."""

from __future__ import annotations

import re
from enum import Enum

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_NUMBER_START = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?([eE][+-]?\d*)?)?")
_BLANKS = " \t\r\n"


class JsonState(str, Enum):
    """How far a text is; the value is the mark that is shown."""

    EMPTY = ""
    PARTIAL = "JSON ✓ so far"
    COMPLETE = "JSON ✓"
    BROKEN = "JSON ✗"


class JsonCheck:
    """Feed it text; `state` says what all of it is. A text that is broken stays so; `broken_at` counts characters."""

    def __init__(self) -> None:
        self.broken_at: int | None = None
        self._count = 0
        self._closers: list[str] = []
        self._expects = "value"
        """value, first (value or closing), key, first_key (key or closing), colon, next (comma or closing), end."""
        self._inside = ""
        """Of a token: string, escape, unicode, number, word; empty between them."""
        self._token = ""
        self._is_key = False

    @property
    def state(self) -> JsonState:
        if self.broken_at is not None:
            return JsonState.BROKEN
        is_number = self._inside == "number" and not self._closers and _NUMBER.fullmatch(self._token) is not None
        if (self._expects == "end" and not self._inside) or is_number:
            return JsonState.COMPLETE
        return JsonState.PARTIAL if self._count else JsonState.EMPTY

    def feed(self, text: str) -> None:
        """Take more text."""
        for character in text:
            if self.broken_at is not None:
                return
            if not self._take(character):
                self.broken_at = self._count
            self._count += 1

    def _take(self, character: str) -> bool:
        """Take a character and return whether the text can still become JSON."""
        match self._inside:
            case "string":
                return self._in_string(character)
            case "escape":
                self._inside, self._token = ("unicode", "") if character == "u" else ("string", "")
                return character in '"\\/bfnrtu'
            case "unicode":
                self._token += character
                if len(self._token) == 4:
                    self._inside = "string"
                return character in "0123456789abcdefABCDEF"
            case "word":
                self._token += character
                return self._in_word()
            case "number":
                if _NUMBER_START.fullmatch(self._token + character) is not None:
                    self._token += character
                    return True
                if _NUMBER.fullmatch(self._token) is None:
                    return False
                self._inside = ""
                self._value_ends()
        return self._between(character)

    def _in_string(self, character: str) -> bool:
        if character == "\\":
            self._inside = "escape"
        elif character == '"':
            self._inside = ""
            if self._is_key:
                self._expects = "colon"
            else:
                self._value_ends()
        return character >= " "

    def _in_word(self) -> bool:
        words = ("true", "false", "null")
        if self._token in words:
            self._inside = ""
            self._value_ends()
            return True
        return any(word.startswith(self._token) for word in words)

    def _between(self, character: str) -> bool:
        if character in _BLANKS:
            return True
        if character in "]}":
            return self._closes(character)
        match self._expects:
            case "value" | "first":
                return self._value_begins(character)
            case "key" | "first_key":
                self._inside, self._is_key = "string", True
                return character == '"'
            case "colon":
                self._expects = "value"
                return character == ":"
            case "next":
                self._expects = "value" if self._closers[-1] == "]" else "key"
                return character == ","
        return False

    def _value_begins(self, character: str) -> bool:
        if character == "{":
            self._closers.append("}")
            self._expects = "first_key"
        elif character == "[":
            self._closers.append("]")
            self._expects = "first"
        elif character == '"':
            self._inside, self._is_key = "string", False
        elif character == "-" or character in "0123456789":
            self._inside, self._token = "number", character
        else:
            self._inside, self._token = "word", character
            return character in "tfn"
        return True

    def _closes(self, character: str) -> bool:
        if not self._closers or self._closers[-1] != character or self._expects not in ("first", "first_key", "next"):
            return False
        self._closers.pop()
        self._value_ends()
        return True

    def _value_ends(self) -> None:
        self._expects = "next" if self._closers else "end"
