"""The files of a model while it is loaded: which of them changed, when a mapped one may have ended the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


class ModelFiles:
    """The sizes that files have now, to be compared with later."""

    def __init__(self, models: list[str]) -> None:
        """models: folders, or files, which may be parts of several."""
        self._sizes = {file: file.stat().st_size for model in models for file in _files_of(Path(model))}

    def changed(self) -> str | None:
        """Return a sentence about the first file that is shorter now, or gone; None where there is none."""
        for file, size in self._sizes.items():
            try:
                now = file.stat().st_size
            except OSError as error:
                return f"{file} was {size:,} bytes when it was loaded, and cannot be read now: {error.strerror}"
            if now < size:
                return f"{file} was {size:,} bytes when it was loaded, and is {now:,} now"
        return None


def _files_of(model: Path) -> Iterator[Path]:
    try:
        beside = sorted(model.iterdir() if model.is_dir() else model.parent.glob(f"*{model.suffix}"))
    except OSError:  # the engine says what is wrong with it
        return
    yield from (file for file in beside if file.is_file())
