"""The server's status and who waits for its changes. A newer status replaces one that nobody has read yet."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import qlocal
from qlocal.schema import EngineState, Status


class StatusBoard:
    """Holds the one current Status; belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.status = Status(EngineState.EMPTY, qlocal.__version__, os.getpid())
        self._changed = asyncio.Event()

    def update(self, **changes: Any) -> None:
        """Replace fields of the status and wake everyone who waits."""
        self.status = replace(self.status, **changes)
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self) -> AsyncIterator[Status]:
        """Yield the status now and after every change; changes in between are skipped, the last one never."""
        while True:
            changed, status = self._changed, self.status
            yield status
            await changed.wait()
