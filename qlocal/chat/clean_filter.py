"""The last gate before the terminal, which no widget can forget. What is foreign passed `clean` long before."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from qlocal.clean import blotted


class CleanFilter(LineFilter):
    """Textual hands every line of every widget through its filters; what is unsafe there becomes a blot."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [_clean(segment) for segment in segments]


def _clean(segment: Segment) -> Segment:
    text = blotted(segment.text)
    return segment if text is segment.text else segment._replace(text=text)
