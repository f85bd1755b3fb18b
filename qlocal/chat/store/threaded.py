"""The history for an event loop: one thread owns the connection, so that no disk ever holds up a key.

Calls are done in the order in which they were made.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.errors import HistoryError

T = TypeVar("T")


class Store:
    """A history file and its thread. `await store.open()` first; `await store.close()` writes everything out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._connection: sqlite3.Connection | None = None
        self._history: History | None = None

    async def open(self) -> str | None:
        """Open or make the file; returns a sentence for the user if a damaged one was put aside. HistoryError."""
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

    def _open(self) -> str | None:
        self._connection, notice = open_database(self.path)
        self._history = History(self._connection)
        self._history.close_orphans()
        return notice

    def _run(self, job: Callable[[History], T]) -> T:
        if self._history is None:
            raise HistoryError(f"{self.path}: the history is not open")
        try:
            return job(self._history)
        except sqlite3.Error as error:
            raise HistoryError(f"{self.path}: {error}") from error
