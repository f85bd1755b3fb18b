r"""LaTeX formulas as one or several lines of Unicode: `\frac{a+b}{2}` is `(a+b)/2`, `x_i^2` is `xᵢ²`.

What has no short form keeps its meaning by brackets, and an unknown command its name: nothing is left out that
would change what a formula says.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qlocal.chat.markdown.latex_symbols import (
    ACCENTS,
    BLACKBOARD,
    DROPPED,
    FRACTIONS,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    SYMBOLS,
    TEXT,
)

# A longer or deeper one is shown as its source: it is no formula that anybody reads.
MAX_CHARS = 4_000
MAX_DEPTH = 30

_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\.|\s+|.", re.DOTALL)
# A number, or one letter, with what belongs to it; or something that has its brackets already.
_ATOM = re.compile(r"√?(?:[\d.,]+|\w|∞)[′°!\u0300-\u036f\u20d7\u2070-\u209f\u1d2c-\u1dbf²³¹½]*|\(.*\)|\[.*\]")
_LETTERS = frozenset({"mathcal", "mathfrak", "mathscr", "boxed", "overbrace", "underbrace", "phantom", "tag"})
_MATRIX = {"pmatrix": "()", "bmatrix": "[]", "vmatrix": "||", "Vmatrix": "‖‖", "matrix": "  ", "smallmatrix": "  "}


def to_unicode(source: str) -> str:
    """Return a formula as text; lines that `\\\\` parts stay lines."""
    if len(source) > MAX_CHARS:
        return source.strip()
    try:
        text = _Reader(source).until(frozenset(), 0)
    except RecursionError:
        return source.strip()
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


class _Reader:
    """Reads tokens one after the other; every method returns the text of what it has read."""

    def __init__(self, source: str) -> None:
        self._tokens = _TOKEN.findall(source)
        self._at = 0

    def until(self, ends: frozenset[str], depth: int) -> str:
        """Read up to one of `ends`, which is consumed, or to the end."""
        parts: list[str] = []
        while self._at < len(self._tokens):
            token = self._next()
            if token in ends:
                break
            parts.append(self._shown(token, depth))
        return "".join(parts)

    def _next(self) -> str:
        token: str = self._tokens[self._at]
        self._at += 1
        return token

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _skip_blanks(self) -> None:
        while self._peek().isspace():
            self._at += 1

    def _argument(self, depth: int) -> str:
        """Read what a command takes: a group, or the next token."""
        if depth > MAX_DEPTH:
            raise RecursionError
        self._skip_blanks()
        if not self._peek():
            return ""
        token = self._next()
        return self.until(frozenset("}"), depth + 1).strip() if token == "{" else self._shown(token, depth + 1)

    def _option(self, depth: int) -> str | None:
        self._skip_blanks()
        if self._peek() != "[":
            return None
        self._at += 1
        return self.until(frozenset("]"), depth + 1)

    def _verbatim(self) -> str:
        """Read the group behind `\\text` and its like as it stands."""
        self._skip_blanks()
        if self._peek() != "{":
            return self._shown(self._next(), 0) if self._peek() else ""
        self._at += 1
        parts, open_groups = [], 1
        while self._at < len(self._tokens):
            token = self._next()
            open_groups += {"{": 1, "}": -1}.get(token, 0)
            if not open_groups:
                break
            parts.append({"{": "", "}": "", "~": " "}.get(token, SYMBOLS.get(token.removeprefix("\\"), token)))
        return "".join(parts)

    def _shown(self, token: str, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise RecursionError
        match token:
            case "{":
                return self.until(frozenset("}"), depth + 1)
            case "}" | "&":
                return ""
            case "^":
                return _script(self._argument(depth), SUPERSCRIPTS, "^")
            case "_":
                return _script(self._argument(depth), SUBSCRIPTS, "_")
            case "~":
                return " "
            case "'":
                return "′"
            case "\\\\":
                self._option(depth)
                return "\n"
            case _ if token.startswith("\\") and len(token) > 1:
                return self._command(token[1:].removesuffix("*"), depth)
            case _:
                return " " if token.isspace() else token

    def _command(self, name: str, depth: int) -> str:
        if (special := _COMMANDS.get(name)) is not None:
            return special(self, depth)
        if name in TEXT:
            return self._verbatim()
        if name in _LETTERS:
            return self._argument(depth)
        if name in ACCENTS:
            return _accented(self._argument(depth), name)
        if name in DROPPED:
            self._skip_blanks()
            if self._peek() == "." and name in ("left", "right", "middle"):
                self._at += 1
            return ""
        symbol = SYMBOLS.get(name)
        if symbol is None:
            return f"\\{name}" + "".join(f"{{{self._argument(depth)}}}" for _ in range(1) if self._peek() == "{")
        # A function's name stays apart from what it is of.
        needs_blank = symbol == name and name.isalpha() and (self._peek().isalnum() or self._peek().startswith("\\"))
        return symbol + " " if needs_blank else symbol

    def fraction(self, depth: int) -> str:
        above, below = self._argument(depth), self._argument(depth)
        short = FRACTIONS.get(f"{above}/{below}")
        return short or f"{_bracketed(above)}/{_bracketed(below)}"

    def binomial(self, depth: int) -> str:
        return f"C({self._argument(depth)}, {self._argument(depth)})"

    def root(self, depth: int) -> str:
        degree = self._option(depth)
        sign = {None: "√", "2": "√", "3": "∛", "4": "∜"}.get(degree) or _script(degree or "", SUPERSCRIPTS, "^") + "√"
        return sign + _bracketed(self._argument(depth), is_tight=True)

    def blackboard(self, depth: int) -> str:
        return "".join(BLACKBOARD.get(letter, letter) for letter in self._argument(depth))

    def negated(self, depth: int) -> str:
        return self._argument(depth) + "\u0338"

    def over(self, depth: int) -> str:
        """`\\overset{a}{b}` and `\\underset`: what stands beside is put behind."""
        beside, main = self._argument(depth), self._argument(depth)
        return f"{main}^({beside})"

    def modulo(self, depth: int) -> str:
        return f" (mod {self._argument(depth)})"

    def environment(self, depth: int) -> str:
        name = self._verbatim().removesuffix("*")
        if name in ("array", "tabular"):
            self._verbatim()
        body = self._environment_source()
        if name not in _MATRIX and name != "cases":
            return "\n" + _Reader(body).until(frozenset(), depth + 1) + "\n"
        rows = [[_cell(cell, depth) for cell in row.split("&")] for row in body.split("\\\\") if row.strip()]
        if name == "cases":
            return "{ " + "; ".join(", ".join(cell.rstrip(",") for cell in row) for row in rows) + " }"
        brackets = _MATRIX[name]
        return brackets[0] + "; ".join(" ".join(row) for row in rows) + brackets[1]

    def _environment_source(self) -> str:
        """Read up to the `\\end` that belongs here, as source."""
        parts, open_environments = [], 1
        while self._at < len(self._tokens):
            token = self._next()
            open_environments += {"\\begin": 1, "\\end": -1}.get(token, 0)
            if not open_environments:
                self._verbatim()
                break
            parts.append(token)
        return "".join(parts)


_COMMANDS: dict[str, Callable[[_Reader, int], str]] = {
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac"), _Reader.fraction),
    **dict.fromkeys(("binom", "dbinom", "tbinom"), _Reader.binomial),
    **dict.fromkeys(("overset", "underset", "stackrel"), _Reader.over),
    "sqrt": _Reader.root,
    "mathbb": _Reader.blackboard,
    "not": _Reader.negated,
    "pmod": _Reader.modulo,
    "begin": _Reader.environment,
}


def _cell(source: str, depth: int) -> str:
    return re.sub(r"\s+", " ", _Reader(source).until(frozenset(), depth + 1)).strip()


def _script(text: str, table: dict[str, str], mark: str) -> str:
    """Return small characters where there is one for each; else the mark and the text, in brackets if longer."""
    text = text.strip()
    if all(character in table for character in text):
        return "".join(table[character] for character in text)
    return f"{mark}{text}" if len(text) == 1 else f"{mark}({text})"


def _bracketed(text: str, *, is_tight: bool = False) -> str:
    """Return a text that stays one thing beside a `/` (or behind a root, where only one number or letter does)."""
    text = text.strip()
    is_one = (len(text) == 1 or text.isdigit()) if is_tight else _is_atom(text)
    return text if is_one else f"({text})"


def _is_atom(text: str) -> bool:
    if _ATOM.fullmatch(text) is None:
        return False
    # `(a)(b)` begins and ends with brackets, which are not each other's.
    depth = 0
    for i, character in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if depth == 0 and text[0] in "([" and i < len(text) - 1:
            return False
    return True


def _accented(text: str, name: str) -> str:
    text = text.strip()
    if len(text) == 1 or name in ("overline", "underline"):
        return "".join(character + ACCENTS[name] for character in text)
    return f"{name}({text})"
