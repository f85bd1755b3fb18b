"""The user's own editor: the screen is handed to it, and comes back when it ends."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

from textual.app import App, SuspendNotSupported

from qlocal.errors import UsageError


def edit_file(app: App[Any], path: Path) -> None:
    """Open a file in $VISUAL or $EDITOR and wait for its end. UsageError where that cannot be, or went wrong."""
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        with app.suspend():
            code = subprocess.run([*command, str(path)], check=False).returncode
    except SuspendNotSupported:
        raise UsageError("this terminal cannot be handed to an editor") from None
    except OSError as error:
        raise UsageError(f"$EDITOR: {command[0]} cannot be started: {error.strerror}") from error
    if code != 0:
        raise UsageError(f"$EDITOR: {command[0]} ended with code {code}; the text is as it was")
