"""Distributions of an answer's tokens by one model, kept until another one is held against them: files by name."""

from __future__ import annotations

import re
import time
import uuid
from pathlib import Path

from qlocal.config import load_settings
from qlocal.errors import RequestError

ID_PATTERN = "^[0-9a-f]{32}$"
MAX_BYTES = 2 << 30
"""Of one reference: some 3,500 tokens of a vocabulary of 151,936, four bytes a number."""
KEPT = 2
_SUFFIX = ".rows"


def new(num_tokens: int, vocabulary: int) -> tuple[str, Path]:
    """Return the name of a new reference and where it goes; those before the last are removed. RequestError when it
    would be too large, or the folder cannot be had."""
    size = 4 * num_tokens * vocabulary
    if size > MAX_BYTES:
        raise RequestError(
            f"the distributions of {num_tokens} tokens take {size} bytes, the limit is {MAX_BYTES}",
            param="keep",
            hint=f"Compare at most {MAX_BYTES // (4 * vocabulary)} tokens at once.",
        )
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in sorted(folder.glob(f"*{_SUFFIX}"), key=_made_at)[: -KEPT + 1 or None]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be used: {error}", status=507, param="keep") from error
    name = uuid.uuid4().hex
    return name, folder / f"{name}{_SUFFIX}"


def find(name: str) -> Path:
    """Return where a reference is. RequestError when it is gone."""
    path = _folder() / f"{name}{_SUFFIX}"
    if not re.fullmatch(ID_PATTERN, name) or not path.is_file():
        raise RequestError(
            f"there is no reference '{name[:40]}'", param="against", hint="Score the answer with `keep` once more."
        )
    return path


def _made_at(path: Path) -> float:
    """Return when a reference was made; where the clock was wrong and says tomorrow, long ago."""
    made_at = path.stat().st_mtime
    return made_at if made_at <= time.time() else 0.0


def _folder() -> Path:
    return load_settings().sessions.parent / "references"
