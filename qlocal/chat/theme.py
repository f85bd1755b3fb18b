"""The own colour themes, and the order in which they are switched. Contrast on every background is at least 4.5.

Textual's two `ansi` themes use the terminal's own sixteen colours.
"""

from __future__ import annotations

from textual.theme import Theme

QUIET = {"text-disabled": "auto 80%"}
"""What cannot be chosen now can be read all the same: Textual's 38 % cannot."""
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
    variables=QUIET,
)
LIGHT = Theme(
    name="qlocal-light",
    primary="#0b62b0",
    secondary="#6a3fb5",
    accent="#0a6e4d",
    warning="#7d5100",
    error="#b3261e",
    success="#2f6f1e",
    foreground="#1c2430",
    background="#fbfbf8",
    surface="#eff2f4",
    panel="#e6ebef",
    dark=False,
    variables=QUIET,
)
CONTRAST = Theme(
    name="qlocal-contrast",
    primary="#7fd7ff",
    secondary="#ffb8ff",
    accent="#5dff9f",
    warning="#ffe14d",
    error="#ff9d94",
    success="#9dff57",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#161616",
    dark=True,
    variables=QUIET,
)
OWN = (DARK, LIGHT, CONTRAST)
NAMES = {
    "dark": DARK.name,
    "light": LIGHT.name,
    "contrast": CONTRAST.name,
    "terminal": "ansi-dark",
    "terminal-light": "ansi-light",
}
"""What users call a theme -> its name; in the order in which the key goes through them."""
ORDER = tuple(NAMES.values())


def called(theme: str) -> str:
    """Return what users call a theme."""
    return next((name for name, known in NAMES.items() if known == theme), theme)


def theme_after(name: str) -> str:
    """Return the theme that follows one."""
    return ORDER[(ORDER.index(name) + 1) % len(ORDER)] if name in ORDER else ORDER[0]
