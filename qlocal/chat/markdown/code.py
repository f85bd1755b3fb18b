"""Code blocks: a coloured panel, highlighted by Pygments.

An open block is lexed a line at a time, so that every line costs once; a closed one as a whole, which also
gets strings and comments of several lines right.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.wrap import Line, Ornament, Span, line_width, wrap

if TYPE_CHECKING:
    from pygments.lexer import Lexer

# Above this the colours are left out: a lexer may need time that grows with the square of a line.
MAX_LEXED_LINE_CHARS = 2_000
MAX_LEXED_CHARS = 200_000
_TAB = 4


def code_lines(source: str, language: str, width: int, palette: Palette, *, is_open: bool) -> list[Line]:
    """Return the lines of a code block, each filled to `width`; long ones go on below, nothing is cut."""
    texts = source.expandtabs(_TAB).removesuffix("\n").split("\n")
    lines: list[Line] = []
    if language:
        label = _panel([(language, palette.code + palette.muted)], width, palette)
        lines += [[Ornament(*segment) for segment in line] for line in label]
    if is_open:
        for text in texts:
            lines += _open_line(text, language, width, palette)
    else:
        for spans in _as_a_whole(texts, language, palette):
            lines += _panel(spans, width, palette)
    return lines


def warm_up() -> None:
    """Load what the first code block needs, before it comes: it would hold up a key by 30 ms."""
    _lexer("python")


def _panel(spans: list[Span], width: int, palette: Palette) -> list[Line]:
    edge = Ornament(" ", palette.code)
    return [_filled([edge, *line], width, palette) for line in wrap(spans, width - 2)]


def _filled(line: Line, width: int, palette: Palette) -> Line:
    missing = width - line_width(line)
    return [*line, Ornament(" " * missing, palette.code)] if missing > 0 else line


@lru_cache(maxsize=4096)
def _open_line(text: str, language: str, width: int, palette: Palette) -> list[Line]:
    """Return a line of an open block as drawn: with every piece that comes, all those before it are asked for again."""
    lexer = _lexer(language)
    if lexer is None or len(text) > MAX_LEXED_LINE_CHARS:
        return _panel([(text, palette.code)], width, palette)
    return _panel(_spans(lexer, text, palette), width, palette)


def _as_a_whole(texts: list[str], language: str, palette: Palette) -> list[list[Span]]:
    lexer = _lexer(language)
    too_long = sum(map(len, texts)) > MAX_LEXED_CHARS or any(len(text) > MAX_LEXED_LINE_CHARS for text in texts)
    if lexer is None or too_long:
        return [[(text, palette.code)] for text in texts]
    lines: list[list[Span]] = [[]]
    for text, style in _spans(lexer, "\n".join(texts), palette):
        first, *others = text.split("\n")
        lines[-1].append((first, style))
        lines += [[(other, style)] for other in others]
    return lines[: len(texts)]


def _spans(lexer: Lexer, text: str, palette: Palette) -> list[Span]:
    return [(value, palette.code + getattr(palette, _style_name(kind))) for kind, value in lexer.get_tokens(text)]


@lru_cache(maxsize=1024)
def _style_name(kind: Any) -> str:
    """Return the palette's name for a token type of Pygments: that of its nearest known ancestor."""
    while kind is not None:
        if (name := _STYLES.get(str(kind))) is not None:
            return name
        kind = kind.parent
    return "code"


@lru_cache(maxsize=64)
def _lexer(language: str) -> Lexer | None:
    # Pygments' list of lexers costs 10 ms, which a conversation without code does not pay.
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


_STYLES = {
    "Token.Keyword": "code_keyword",
    "Token.Operator.Word": "code_keyword",
    "Token.Name.Tag": "code_keyword",
    "Token.Literal.String": "code_string",
    "Token.Literal.Number": "code_number",
    "Token.Comment": "code_comment",
    "Token.Name.Function": "code_name",
    "Token.Name.Class": "code_name",
    "Token.Name.Decorator": "code_name",
    "Token.Name.Builtin": "code_name",
    "Token.Name.Attribute": "code_name",
    "Token.Generic.Deleted": "code_keyword",
    "Token.Generic.Inserted": "code_string",
}
