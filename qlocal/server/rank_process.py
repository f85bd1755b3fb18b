"""One engine rank: its process and the socket pair to it. Knows frames, not requests."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from qlocal import protocol
from qlocal.endings import ending
from qlocal.errors import EngineError
from qlocal.protocol import Message, Shutdown

RANK_COMMAND = (sys.executable, "-m", "qlocal.engine.rank")
SHUTDOWN_GRACE_S = 12.0
OOM_SCORE = 500
"""When memory runs out the kernel shall take the rank, which is started again, and not the chat."""

log = logging.getLogger(__name__)


class RankProcess:
    """A started rank. `end` must be called, whatever happens."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, command: Sequence[str] = RANK_COMMAND) -> RankProcess:
        """Start `command --fd N`; its standard error is the server's log."""
        with ExitStack() as undo:  # a load may be cancelled at any await
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                process = await _start_process([*command, "--fd", str(theirs.fileno())], theirs.fileno())
            undo.callback(_kill, process)
            _raise_oom_score(process.pid)
            reader, writer = await asyncio.open_connection(sock=ours)
            undo.pop_all()
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    def send(self, message: Message) -> None:
        """Queue a message; a rank that is gone is noticed by the reader, not here."""
        if not self._writer.is_closing():
            self._writer.write(protocol.encode(message))

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages until the rank closes its end; EngineError for a malformed frame."""
        while True:
            try:
                header = await self._reader.readexactly(protocol.HEADER.size)
                payload = await self._reader.readexactly(protocol.frame_length(header))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            yield protocol.decode(payload)

    def kill(self) -> None:
        """Send SIGKILL; `messages` then ends."""
        _kill(self._process)

    async def end(self) -> str:
        """Ask for an orderly end, insist after a while; return in words how it ended."""
        self.send(Shutdown())
        try:
            code = await asyncio.wait_for(self._process.wait(), SHUTDOWN_GRACE_S)
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        finally:
            self._writer.close()
        return ending("the engine", code)


async def _start_process(command: Sequence[str], descriptor: int) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(*command, pass_fds=(descriptor,), stdin=asyncio.subprocess.DEVNULL)
    except OSError as error:
        raise EngineError(f"the engine process could not be started: {error}") from error


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


def _raise_oom_score(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))
    except OSError as error:
        log.info("the engine's OOM score stays as it is: %s", error)
