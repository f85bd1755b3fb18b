"""The end of the server's log, as it grows. Everything in it is foreign text."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Log, Static

from qlocal.chat import words
from qlocal.chat.languages import t
from qlocal.clean import clean, clean_line

TAIL_BYTES = 128 << 10
READ_S = 0.5


class LogScreen(Screen[None]):
    """Follows a file; one that is written anew is read from its beginning."""

    CSS_PATH = "log.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "leave", "Back", id="log.leave")]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._at: int | None = None

    def compose(self) -> ComposeResult:
        yield Static(clean_line(str(self._path)), id="path", markup=False)
        yield Log(id="log", max_lines=20_000)
        yield Static(t(words.LOG_KEYS), id="keys", markup=False)

    async def on_mount(self) -> None:
        self.query_one(Log).focus()
        await self._follow()
        self.set_interval(READ_S, self._follow)

    def action_leave(self) -> None:
        self.dismiss(None)

    async def _follow(self) -> None:
        text, self._at = await asyncio.to_thread(_read_from, self._path, self._at)
        if text:
            self.query_one(Log).write(clean(text.expandtabs(8)))


def _read_from(path: Path, at: int | None) -> tuple[str, int | None]:
    """Return what was written since `at`, None for the beginning, and where that ends."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            start = max(0, end - TAIL_BYTES) if at is None or at > end else at
            file.seek(start)
            data = file.read(end - start)
    except OSError as error:
        return ("", at) if at is not None else (f"{path} cannot be read: {error.strerror}\n", 0)
    if at is None and start > 0:
        data = data[data.find(b"\n") + 1 :]
    return data.decode("utf-8", "replace").replace("\r", "\n"), end
