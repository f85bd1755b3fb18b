"""A rank as the server starts it, and a talk with it in messages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from qlocal.protocol import HEADER, Message, decode, encode, frame_length

START_TIMEOUT_S = 120.0


class Rank:
    """A running rank process and our end of its socket."""

    def __init__(self, threads: int | None = 1) -> None:
        """threads: of its arithmetic, None for what it takes by itself."""
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(START_TIMEOUT_S)
        command = [sys.executable, "-m", "qlocal.engine.rank", "--fd", str(theirs.fileno())]
        environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
        )
        theirs.close()

    def send(self, message: Message) -> None:
        self.socket.sendall(encode(message))

    def receive(self) -> Message:
        return decode(self._read(frame_length(self._read(HEADER.size))))

    def until(self, kind: type[Message]) -> list[Message]:
        """Return what arrives up to and including the first message of `kind`."""
        messages = [self.receive()]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive())
        return messages

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            assert part, "the rank closed the socket"
            data += part
        return data
