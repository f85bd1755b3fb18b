"""The styles that Markdown is drawn with. The screen fills them from its theme; the widths never depend on them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rich.style import Style


@dataclass(frozen=True)
class Palette:
    """One style for each thing that looks different. `NULL_STYLE` parts take the colour of what is around them."""

    text: Style
    muted: Style
    heading: Style
    strong: Style
    emphasis: Style
    strike: Style
    inline_code: Style
    link: Style
    marker: Style
    """Bullets, numbers, quote bars and table rules."""
    math: Style
    code: Style
    """Background and text of a code block."""
    code_keyword: Style
    code_string: Style
    code_number: Style
    code_comment: Style
    code_name: Style


PLAIN = Palette(*(Style.null() for _ in fields(Palette)))
"""No colours at all: for tests and for terminals without them."""
