"""Which unknown chat templates were loaded here before: one is warned of once."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from qlocal.schema import Template

log = logging.getLogger(__name__)
MAX_BYTES = 1 << 20


class SeenTemplates:
    """Hashes, one a line, in a file that may be missing. What cannot be read or written is warned of again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def look_at(self, template: Template) -> Template:
        """Return it with `is_new` set where it is unknown and was never seen, and remember it."""
        if template.known_as is not None:
            return template
        is_new = template.sha256 not in self._seen()
        if is_new:
            self._remember(template.sha256)
        return replace(template, is_new=is_new)

    def _seen(self) -> set[str]:
        try:
            with self._path.open(encoding="utf-8", errors="replace") as file:
                return set(file.read(MAX_BYTES).split())
        except OSError:
            return set()

    def _remember(self, sha256: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{sha256}\n")
        except OSError as error:
            log.warning("a template that was seen cannot be remembered: %s", error)
