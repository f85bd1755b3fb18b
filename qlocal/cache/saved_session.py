"""A prompt whose blocks are kept on disk under a name, whatever the quota would remove. docs/formats.md describes it.

A file of the layout of a block's: the header names what made the keys and values and holds the prompt's tokens, the
payload the digests of its blocks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlocal.cache.block_file import read_header
from qlocal.errors import SessionError

SUFFIX = ".session"
DIGEST_BYTES = 16
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_MODEL = "model"


@dataclass(frozen=True)
class SavedSession:
    """What is told of one. saved_at: seconds since 1970."""

    name: str
    model: str
    tokens: int
    saved_at: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def session_path(folder: Path, name: str) -> Path:
    """Return the file of a name. SessionError for what is no name."""
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise SessionError(
            f"'{name[:80]}' is no name for a session", hint="Take up to 64 letters, digits, dots, hyphens, underscores."
        )
    return folder / f"{name}{SUFFIX}"


def with_model(made_by: Mapping[str, str], model: str) -> dict[str, str]:
    """Return what a header names, and for people the model."""
    return {**made_by, _MODEL: model}


def session_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)


def saved_sessions(folder: Path | None) -> Sequence[SavedSession]:
    """Return all that can be read, in the order of their names."""
    found = []
    for path in session_files(folder) if folder is not None and folder.is_dir() else []:
        try:
            header, saved_at = read_header(path), path.stat().st_mtime
        except (SessionError, OSError):  # who restores it is told
            continue
        found.append(SavedSession(path.stem, header.made_by.get(_MODEL, ""), len(header.token_ids), int(saved_at)))
    return found
