"""Small charts as inline SVG: lines over layers on a logarithmic axis, bars over layers, bars by name. No library.

Every mark carries a <title>, which browsers show under the pointer: the exact value is always at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 30, 40
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#555555", "#a6761d")
"""Told apart also by those who see few colours (after Okabe and Ito)."""
ALARM = "#c00000"
INK, GRID = "#333333", "#dddddd"
LEAST = 1e-9
"""What a logarithmic axis shows of zero."""

Value = float | None
"""None is a value that is not a number; it is drawn at the upper edge, in the colour of alarm."""


@dataclass(frozen=True)
class _Frame:
    """The plotting area: x from 0 to `last`, y from `low` to `high` in the axis's own units (logarithms or values)."""

    last: int
    low: float
    high: float

    def x(self, position: float) -> float:
        return LEFT + (position + 0.5) * (WIDTH - LEFT - RIGHT) / (self.last + 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def lines(series: Mapping[str, Sequence[tuple[int, Value]]], x_label: str, limit: float | None = None) -> str:
    """Draw (x, value) of every series on a logarithmic axis, with a dashed line at `limit`."""
    values = [v for points in series.values() for _, v in points if v is not None] + ([limit] if limit else [])
    logs = [math.log10(max(v, LEAST)) for v in values] or [0.0]
    last = max((x for points in series.values() for x, _ in points), default=0)
    frame = _Frame(last, math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1))
    parts = [_log_grid(frame), _x_axis(frame, x_label)]
    if limit:
        parts.append(_level(frame.y(math.log10(limit)), f"limit {limit:g}", ALARM))
    for index, (name, points) in enumerate(series.items()):
        parts.append(_series(frame, name, points, COLOURS[index % len(COLOURS)]))
    return _svg([*parts, _legend(list(series))], HEIGHT)


def columns(values: Sequence[tuple[str, float]], x_label: str, unit: str, average: float | None = None) -> str:
    """Draw one column a name from zero up; a dashed line at `average`."""
    high = _nice_ceiling(max((v for _, v in values), default=1.0))
    frame = _Frame(max(len(values) - 1, 0), 0.0, high)
    parts = [_linear_grid(frame, unit), _x_names(frame, [name for name, _ in values], x_label)]
    width = max(1.0, 0.7 * (WIDTH - LEFT - RIGHT) / max(len(values), 1))
    for at, (name, value) in enumerate(values):
        y = frame.y(value)
        parts.append(_bar(frame.x(at) - width / 2, y, width, HEIGHT - BOTTOM - y, f"{name}: {value:.4g} {unit}"))
    if average is not None:
        parts.append(_level(frame.y(average), f"{average:.4g} {unit} over all", COLOURS[4]))
    return _svg(parts, HEIGHT)


def bars(values: Sequence[tuple[str, float, str]]) -> str:
    """Draw one bar a row from (name, value, value as text), longest as wide as there is room."""
    row, names, texts = 24, 110, 230
    largest = max((value for _, value, _ in values), default=1.0) or 1.0
    parts = []
    for at, (name, value, text) in enumerate(values):
        y, width = at * row + 4, max(1.0, value / largest * (WIDTH - names - texts))
        parts.append(_text(names - 8, y + 12, name, "end"))
        parts.append(_bar(names, y, width, 16, f"{name}: {text}"))
        parts.append(_text(names + width + 8, y + 12, text))
    return _svg(parts, len(values) * row + 4)


def _series(frame: _Frame, name: str, points: Sequence[tuple[int, Value]], colour: str) -> str:
    places = [(frame.x(x), TOP if v is None else frame.y(math.log10(max(v, LEAST))), v, x) for x, v in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    marks = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{ALARM if v is None else colour}">'
        + _title(f"{name}, layer {at}: {'not a number' if v is None else f'{v:.5g}'}")
        + "</circle>"
        for x, y, v, at in places
    ]
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>' + "".join(marks)


def _bar(x: float, y: float, width: float, height: float, title: str) -> str:
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {shape} fill="{COLOURS[0]}">{_title(title)}</rect>'


def _level(y: float, label: str, colour: str) -> str:
    """Draw a dashed line across, with its label above it at the left: the right end is where the head stands."""
    line = (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-dasharray="6 4"/>'
    )
    return line + _text(LEFT + 4, y - 4, label, "start", colour)


def _log_grid(frame: _Frame) -> str:
    step = max(1, round((frame.high - frame.low) / 6))
    exponents = range(int(frame.low), int(frame.high) + 1, step)
    return "".join(_grid_line(frame.y(e), f"{10.0**e:g}") for e in exponents)


def _linear_grid(frame: _Frame, unit: str) -> str:
    return "".join(_grid_line(frame.y(frame.high * k / 4), f"{frame.high * k / 4:.4g}") for k in range(5)) + _text(
        LEFT, TOP - 12, unit
    )


def _grid_line(y: float, label: str) -> str:
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>' + _text(
        LEFT - 8, y + 4, label, "end"
    )


def _x_axis(frame: _Frame, label: str) -> str:
    return _x_names(frame, [str(k) for k in range(frame.last + 1)], label)


def _x_names(frame: _Frame, names: Sequence[str], label: str) -> str:
    step = max(1, math.ceil(len(names) / 20))
    shown = [(at, name) for at, name in enumerate(names) if at % step == 0 or not name.isdigit()]
    ticks = [_text(frame.x(at), HEIGHT - BOTTOM + 16, name, "middle") for at, name in shown]
    return "".join(ticks) + _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, label, "middle")


def _legend(names: Sequence[str]) -> str:
    parts, x = [], float(LEFT)
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="6" width="10" height="10" fill="{colour}"/>' + _text(x + 14, 15, name))
        x += 34 + 7 * len(name)
    return "".join(parts)


def _nice_ceiling(value: float) -> float:
    """Return the smallest of 1, 2, 4, 5, 8, 10 times a power of ten that is not below `value`."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _svg(parts: Sequence[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    return f'{head} role="img" font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
