"""What is kept of conversations on disk, for those who ask or want it gone. Knows file names, not what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def stored(folder: Path | None) -> dict[str, Any]:
    """Return the folder, and the number of files and bytes in it; None and nothing where none are kept."""
    sizes = [path.stat().st_size for path in _files(folder)]
    return {"folder": None if folder is None else str(folder), "files": len(sizes), "bytes": sum(sizes)}


def forget(folder: Path | None) -> dict[str, Any]:
    """Remove everything that is kept, and return what is left as `stored` does."""
    for path in _files(folder):
        path.unlink(missing_ok=True)
    return stored(folder)


def _files(folder: Path | None) -> Iterator[Path]:
    if folder is not None and folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.suffix in (".kv", ".constants", ".part"))
