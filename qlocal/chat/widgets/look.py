"""The theme's colours as the styles of the transcript."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.style import Style
from textual.color import Color, ColorParseError

from qlocal.chat.entry import Look
from qlocal.chat.markdown.palette import Palette

MUTED = 0.62
"""How much of the foreground is left in text that matters less."""


def look_of(theme: Mapping[str, str]) -> Look:
    """Return the styles for a theme, given as `App.theme_variables`."""
    colors = {name: _hex(theme.get(name, "")) for name in _USED}
    muted = Style(color=_muted(theme))
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
        base=Style(color=colors["foreground"], bgcolor=_hex(theme.get("background", ""))),
        user=Style(color=colors["foreground"], bgcolor=colors["surface"]),
        user_bar=Style(color=colors["accent"], bgcolor=colors["surface"]),
        head=Style(color=colors["secondary"], bold=True),
        note=Style(color=colors["error"]),
        cursor=Style(color=colors["accent"], bold=True),
    )


_USED = ("primary", "secondary", "accent", "warning", "error", "success", "foreground", "surface", "panel")


def _hex(value: str) -> str | None:
    """Return a theme's colour for Rich; None (the terminal's own) where it leaves the choice to the terminal."""
    try:
        color = Color.parse(value)
    except ColorParseError:
        return None
    return None if color.ansi is not None else color.hex6


def _muted(theme: Mapping[str, str]) -> str | None:
    try:
        background, foreground = Color.parse(theme["background"]), Color.parse(theme["foreground"])
    except (ColorParseError, KeyError):
        return None
    return background.blend(foreground, MUTED).hex6
