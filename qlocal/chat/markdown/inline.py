"""The text inside a paragraph: markdown-it's inline tokens into styled spans."""

from __future__ import annotations

from collections.abc import Sequence

from markdown_it.token import Token
from rich.style import Style

from qlocal.chat.markdown.latex import to_unicode
from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.wrap import Span


def inline_spans(tokens: Sequence[Token], palette: Palette, base: Style) -> list[Span]:
    """Return the spans of an inline token's children, in `base` where nothing else is said.

    The address of a link stands behind its text where it differs: a reader sees where it leads.
    A line break of the source stays one: models write verses and addresses that way.
    """
    spans: list[Span] = []
    styles = [base]
    addresses: list[tuple[str, int]] = []
    for token in tokens:
        if token.type in _STYLES:
            styles.append(styles[-1] + getattr(palette, _STYLES[token.type]))
        elif token.type in _CLOSING:
            styles.pop()
        elif token.type == "link_open":
            styles.append(styles[-1] + palette.link)
            addresses.append((str(token.attrs.get("href", "")), len(spans)))
        elif token.type == "link_close":
            styles.pop()
            spans += _address(*addresses.pop(), spans, styles[-1] + palette.muted)
        else:
            spans.append(_leaf(token, palette, styles[-1]))
    return spans


_STYLES = {"em_open": "emphasis", "strong_open": "strong", "s_open": "strike"}
_CLOSING = {"em_close", "strong_close", "s_close"}


def _leaf(token: Token, palette: Palette, style: Style) -> Span:
    match token.type:
        case "code_inline":
            return token.content, style + palette.inline_code
        case "softbreak" | "hardbreak":
            return "\n", style
        case "math_inline":
            return to_unicode(token.content).replace("\n", "; "), style + palette.math
        case "image":
            address = token.attrs.get("src", "")
            return f"[image: {token.content or 'without a title'}] ({address})", style + palette.link
        case _:
            return token.content, style


def _address(href: str, first: int, spans: Sequence[Span], style: Style) -> list[Span]:
    shown = "".join(text for text, _ in spans[first:])
    return [] if not href or href.removeprefix("mailto:") == shown else [(f" ({href})", style)]
