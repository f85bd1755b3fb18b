"""Texts that the user keeps by name, a plain file each in a folder of the configuration: prompts, system messages,
sampling presets. What is built in gives way to a file of its name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from qlocal.chat.actions import closest
from qlocal.config import config_folder
from qlocal.errors import UsageError

MAX_BYTES = 1 << 20
MAX_NAME_CHARS = 64
MAX_NAMES_TOLD = 20
DEFAULT = "default"
"""A system message or a sampling of this name is that of new conversations."""

_VARIABLE = re.compile(r"\{\{\s*([^\W\d][\w-]*)\s*\}\}")


class Shelf:
    """The texts of one kind. Reads files when it is asked, so that what an editor changed is there at once."""

    def __init__(self, kind: str, suffix: str, built_in: Mapping[str, str]) -> None:
        """kind: the folder's name, in the plural; suffix: of its files."""
        self.kind, self._suffix, self._built_in = kind, suffix, built_in

    @property
    def folder(self) -> Path:
        return config_folder() / self.kind

    def path(self, name: str) -> Path:
        """Return the file of a name, whether it is there or not. UsageError where it cannot be a file's name."""
        if not name or len(name) > MAX_NAME_CHARS or name.startswith(".") or re.search(r"[/\\\x00-\x1f\s]", name):
            hint = f"A name has at most {MAX_NAME_CHARS} characters, no spaces and no slashes, and begins with no dot."
            raise UsageError(f"{name!r} is no name for one of the {self.kind}", hint=hint)
        return self.folder / f"{name}{self._suffix}"

    def names(self) -> list[str]:
        """Return all names, sorted."""
        found = {path.name.removesuffix(self._suffix) for path in self.folder.glob(f"*{self._suffix}")}
        return sorted({name for name in found if not name.startswith(".")} | set(self._built_in))

    def has(self, name: str) -> bool:
        """Whether there is a text of this name."""
        return name in self.names()

    def read(self, name: str) -> str:
        """Return a text. UsageError where there is none, with the name that is nearest."""
        path = self.path(name)
        if not path.exists() and name in self._built_in:
            return self._built_in[name]
        if not path.exists():
            raise self.missing(name)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UsageError(f"{path} has more than {MAX_BYTES:,} bytes")
            return path.read_text(encoding="utf-8").strip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from error

    def missing(self, name: str) -> UsageError:
        """Return what is to be said of a name that is not there: which ones are, the nearest one first."""
        names, hint = self.names(), closest(name, self.names())
        told = ", ".join(names[:MAX_NAMES_TOLD]) + (", …" if len(names) > MAX_NAMES_TOLD else "")
        listed = f"There are: {told}."
        return UsageError(f"there is no '{name}' among the {self.kind}", hint=f"{hint} {listed}" if hint else listed)

    def write(self, name: str, text: str) -> Path:
        """Keep a text by its name, as a whole or not at all; returns its file."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            beside.write_text(text.strip("\n") + "\n", encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        return path


PROMPTS = Shelf(
    "prompts",
    ".md",
    {
        "explain": "Explain this so that somebody who is new to it understands, with an example:\n\n{{draft}}",
        "review": "Review this code. Name every mistake and every risk with its place, the worst first:\n\n{{draft}}",
        "rewrite": "Rewrite this text so that it is {{how}}. Change nothing of what it says:\n\n{{draft}}",
        "translate": "Translate this into {{language}}. Answer with the translation alone:\n\n{{draft}}",
    },
)
SYSTEMS = Shelf(
    "systems",
    ".md",
    {
        "brief": "Answer in as few words as the question allows.",
        "teacher": "You teach. Lead to the answer step by step, and end with a question about what was said.",
    },
)
SAMPLINGS = Shelf(
    "samplings", ".txt", {"recommended": "", "exact": "temperature=0", "lively": "temperature=1 top_p=0.95"}
)


def variables(text: str) -> list[str]:
    """Return the names of `{{variables}}`, each once, in their order."""
    return list(dict.fromkeys(_VARIABLE.findall(text)))


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of variables; what a value says of variables stays as it is."""
    return _VARIABLE.sub(lambda found: values.get(found[1], found[0]), text)
