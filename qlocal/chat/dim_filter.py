"""Dim text that can be read: Textual leaves it two thirds of its colour, which is too little."""

from __future__ import annotations

from functools import lru_cache

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

LEFT = 0.8
"""How much of its colour is left to dim text."""


class DimText(LineFilter):
    """Mixes the colour of dim text with its background; the terminal's own colours stay as they are, and dim."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            Segment(segment.text, _mixed(segment.style), segment.control)
            if segment.style is not None and segment.style.dim
            else segment
            for segment in segments
        ]


@lru_cache(256)
def _mixed(style: Style) -> Style:
    ink, paper = style.color, style.bgcolor
    if ink is None or paper is None or ink.triplet is None or paper.triplet is None:
        return style
    mixed = Color(*paper.triplet).blend(Color(*ink.triplet), LEFT)
    return style + Style(color=mixed.rich_color, dim=False)
