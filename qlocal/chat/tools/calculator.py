"""Arithmetic by a parser of its own: numbers, + - * / // % **, brackets, a few functions and constants. No eval."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from qlocal.chat.tools.base import ToolError, text_argument

Number = int | float
MAX_CHARS = 1000
MAX_DEPTH = 50
MAX_BITS = 4096
"""Of a whole number: enough for 1,200 digits, too few to keep a processor busy."""

_TOKEN = re.compile(r"\s*(?:(\d[\d_]*\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([a-z]\w*)|(\*\*|//|[-+*/%(),^]))")
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "ln": math.log,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "min": min,
    "max": max,
}


class Calculator:
    """Computes one expression."""

    name: ClassVar = "calculator"
    description: ClassVar = "Compute an arithmetic expression, for example (3 + 4) * 2 ** 10 / sqrt(2)."
    parameters: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "the expression"}},
        "required": ["expression"],
    }
    needs_yes: ClassVar = False

    async def run(self, arguments: Mapping[str, Any]) -> str:
        return str(compute(text_argument(arguments, "expression")))


def compute(expression: str) -> Number:
    """Return the value of an expression. ToolError says what is wrong with it."""
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression has {len(expression)} characters, the limit is {MAX_CHARS}")
    try:
        return _Parser(_tokens(expression)).whole()
    except ToolError:
        raise
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(f"the expression cannot be computed: {error}") from error


def _tokens(expression: str) -> list[str]:
    found, at = [], 0
    while expression[at:].strip():
        match = _TOKEN.match(expression, at)
        if match is None:
            raise ToolError(f"unexpected {expression[at:].strip()[0]!r} in the expression")
        found.append(match[match.lastindex or 0])
        at = match.end()
    return found


class _Parser:
    """Recursive descent: sums of products of signed powers of numbers, names and brackets."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._at, self._depth = tokens, 0, 0

    def whole(self) -> Number:
        value = self._sum()
        if self._at < len(self._tokens):
            raise ToolError(f"unexpected {self._tokens[self._at]!r} in the expression")
        return value

    def _sum(self) -> Number:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"the expression is nested deeper than {MAX_DEPTH}")
        value = self._product()
        while (sign := self._take("+", "-")) is not None:
            other = self._product()
            value = _checked(value + other if sign == "+" else value - other)
        self._depth -= 1
        return value

    def _product(self) -> Number:
        value = self._signed()
        while (sign := self._take("*", "/", "//", "%")) is not None:
            other = self._signed()
            if sign == "*":
                value = _checked(value * other)
            elif sign == "/":
                value = value / other
            else:
                value = value // other if sign == "//" else value % other
        return value

    def _signed(self) -> Number:
        signs = 0
        while (sign := self._take("+", "-")) is not None:
            signs += sign == "-"
        value = self._power()
        return -value if signs % 2 else value

    def _power(self) -> Number:
        base = self._atom()
        if self._take("**", "^") is None:
            return base
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"the expression is nested deeper than {MAX_DEPTH}")
        exponent = self._signed()
        self._depth -= 1
        if isinstance(base, int) and isinstance(exponent, int) and abs(base).bit_length() * abs(exponent) > MAX_BITS:
            raise ToolError(f"{base} ** {exponent} is too large")
        value = base**exponent
        if isinstance(value, complex):
            raise ToolError("the power has no real value")
        return _checked(value)

    def _atom(self) -> Number:
        token = self._next()
        if token == "(":
            value = self._sum()
            self._expect(")")
            return value
        if token[0].isdigit() or token[0] == ".":
            digits = token.replace("_", "")
            return _checked(int(digits)) if digits.isdigit() else float(digits)
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in _FUNCTIONS:
            return self._call(_FUNCTIONS[token])
        raise ToolError(f"'{token[:40]}' is unknown; known are {', '.join([*_CONSTANTS, *_FUNCTIONS])}")

    def _call(self, function: Callable[..., Number]) -> Number:
        self._expect("(")
        values = [self._sum()]
        while self._take(",") is not None:
            values.append(self._sum())
        self._expect(")")
        return _checked(function(*values))

    def _take(self, *wanted: str) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at] in wanted:
            self._at += 1
            return self._tokens[self._at - 1]
        return None

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise ToolError("the expression ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, token: str) -> None:
        if self._take(token) is None:
            raise ToolError(f"expected {token!r} in the expression")


def _checked(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolError(f"a number has more than {MAX_BITS} bits")
    return value
