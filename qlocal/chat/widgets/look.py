"""The theme's colours as the styles of the transcript."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.color import Color as RichColor
from rich.style import Style
from textual.color import Color, ColorParseError

from qlocal.chat.entry import Look
from qlocal.chat.markdown.palette import Palette

MUTED = 0.72
"""How much of the foreground is left in text that matters less."""


def look_of(theme: Mapping[str, str]) -> Look:
    """Return the styles for a theme, given as `App.theme_variables`."""
    colors = {name: _rich(theme.get(name, "")) for name in _USED}
    muted = _muted(theme)
    palette = Palette(
        text=Style.null(),
        muted=muted,
        heading=Style(color=colors["primary"], bold=True),
        strong=Style(bold=True),
        emphasis=Style(italic=True),
        strike=Style(strike=True),
        inline_code=Style(color=colors["warning"], bgcolor=colors["surface"]),
        link=Style(color=colors["primary"], underline=True),
        marker=Style(color=colors["primary"]),
        math=Style(color=colors["secondary"]),
        code=Style(color=colors["foreground"], bgcolor=colors["panel"]),
        code_keyword=Style(color=colors["secondary"], bold=True),
        code_string=Style(color=colors["success"]),
        code_number=Style(color=colors["warning"]),
        code_comment=muted + Style(italic=True),
        code_name=Style(color=colors["primary"]),
    )
    return Look(
        palette=palette,
        thought=replace(palette, text=muted, heading=muted + Style(bold=True), math=muted),
        base=Style(color=colors["foreground"], bgcolor=colors["background"]),
        user=Style(color=colors["foreground"], bgcolor=colors["surface"]),
        user_bar=Style(color=colors["accent"], bgcolor=colors["surface"]),
        head=Style(color=colors["secondary"], bold=True),
        note=Style(color=colors["error"]),
        cursor=Style(color=colors["accent"], bold=True),
    )


_USED = (
    "primary",
    "secondary",
    "accent",
    "warning",
    "error",
    "success",
    "foreground",
    "background",
    "surface",
    "panel",
)


def _rich(value: str) -> RichColor | None:
    """Return a theme's colour for Rich, one of the terminal's own where the theme says so; None for no colour."""
    try:
        color = Color.parse(value)
    except ColorParseError:
        return None
    return color.rich_color if color.a > 0 else None


def _muted(theme: Mapping[str, str]) -> Style:
    try:
        background, foreground = Color.parse(theme["background"]), Color.parse(theme["foreground"])
    except (ColorParseError, KeyError):
        return Style.null()
    if background.ansi is not None or foreground.ansi is not None:
        # Two colours of the terminal cannot be mixed: nobody knows them.
        return Style(dim=True)
    return Style(color=background.blend(foreground, MUTED).rich_color)
