"""The two own colour themes; Textual's others can be chosen as well. Contrast on the background is at least 4.5."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="qlocal-dark",
    primary="#6cb6ff",
    secondary="#b9a3f0",
    accent="#5fd0a5",
    warning="#e6b673",
    error="#ff8a80",
    success="#9ccc7c",
    foreground="#d8dee6",
    background="#0f1419",
    surface="#182028",
    panel="#1d2731",
    dark=True,
)
LIGHT = Theme(
    name="qlocal-light",
    primary="#0b62b0",
    secondary="#6a3fb5",
    accent="#0a7a55",
    warning="#8a5a00",
    error="#b3261e",
    success="#2f6f1e",
    foreground="#1c2430",
    background="#fbfbf8",
    surface="#eff2f4",
    panel="#e6ebef",
    dark=False,
)
