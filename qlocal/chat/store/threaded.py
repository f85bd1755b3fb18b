"""The history for an event loop: one thread owns the connection, so that no disk ever holds up a key.

Calls are done in the order in which they were made. Where the disk is full or fails, the history goes on in memory.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from qlocal.chat.store.database import connect, open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.salvage import Salvage
from qlocal.errors import HistoryError

T = TypeVar("T")

_PRIMARY = 0xFF
"""SQLite's extended codes say more in the bits above."""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
RECOVER = "`qlocal history recover`, after the chat, keeps the file and makes a new one of what can be read."
_DISK_ERRORS = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})


class Store:
    """A history file and its thread. `await store.open()` first; `await store.close()` writes everything out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._connection: sqlite3.Connection | None = None
        self._history: History | None = None
        self._is_in_memory = False
        self._tell: Callable[[str], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, tell: Callable[[str], object] | None = None) -> Salvage | None:
        """Open or make the file; returns what became of a damaged one. HistoryError.

        tell: is given a sentence, in the event loop, when nothing more can be written to the disk."""
        self._tell, self._loop = tell, asyncio.get_running_loop()
        return await asyncio.wrap_future(self._thread.submit(self._open))

    async def run(self, job: Callable[[History], T]) -> T:
        """Run `job` with the history in its thread and return its result. HistoryError where SQLite fails."""
        return await asyncio.wrap_future(self.submit(job))

    def submit(self, job: Callable[[History], T]) -> Future[T]:
        """Queue `job` without waiting: for the last word on an answer whose task has just been cancelled."""
        return self._thread.submit(self._run, job)

    async def close(self) -> None:
        """Finish what is queued and close the file."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """The same for the end of the program, where no event loop runs any more. May be called twice."""
        self._thread.shutdown(wait=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Salvage | None:
        self._connection, salvage = open_database(self.path)
        self._history = History(self._connection)
        self._history.close_orphans()
        return salvage

    def _run(self, job: Callable[[History], T]) -> T:
        if self._history is None:
            raise HistoryError(f"{self.path}: the history is not open")
        try:
            return job(self._history)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY
            if code not in _DISK_ERRORS or not self._go_on_in_memory(error):
                raise HistoryError(f"{self.path}: {error}", hint=RECOVER if code in _DAMAGE else None) from error
            return self._run(job)
        except (TypeError, ValueError) as error:  # a row that no version of this program has written
            raise HistoryError(f"{self.path}: a row in it is damaged: {error}", hint=RECOVER) from error

    def _go_on_in_memory(self, error: sqlite3.Error) -> bool:
        """Copy the history into memory, where all that follows is kept; False if it is there already or unreadable."""
        if self._connection is None or self._is_in_memory:
            return False
        memory = connect(":memory:")
        try:
            self._connection.backup(memory)
        except sqlite3.Error:
            memory.close()
            return False
        self._connection.close()
        self._connection, self._history, self._is_in_memory = memory, History(memory), True
        if self._tell is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell, f"{self.path}: {error}")
        return True
