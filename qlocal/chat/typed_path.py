"""The paths that a user types or pastes behind a command."""

from __future__ import annotations

from pathlib import Path

from qlocal.errors import UsageError


def typed_path(text: str) -> Path:
    """Return the path that a text names, `~` expanded. UsageError where it can name none on this system."""
    if "\0" in text:
        raise UsageError(f"{text!r} is no path: it has a zero byte in it")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UsageError(f"{text}: {error}") from error
