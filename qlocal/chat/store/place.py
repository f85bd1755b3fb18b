"""Where the history lies."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from qlocal.config import APP, Settings


def history_path(settings: Settings) -> Path:
    """Return where the history lies: beside the model folder of QLOCAL_HOME, else in the user's data folder."""
    if settings.sources.get("home") == "environment":
        return settings.home / "history.sqlite3"
    return Path(platformdirs.user_data_path(APP)) / "history.sqlite3"
