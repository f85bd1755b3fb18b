"""The engine's process: `python -m qlocal.engine.rank --fd N`, with one end of a socket pair as descriptor N.

Frames are read between steps; the process ends when the other end closes. Nothing else starts or stops it.
"""

from __future__ import annotations

import argparse
import logging
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING

from qlocal.devices import keep_threads_calm
from qlocal.errors import QLocalError
from qlocal.protocol import (
    HEADER,
    Cancel,
    Failed,
    Load,
    Message,
    Ping,
    Pong,
    Shutdown,
    Submit,
    decode,
    encode,
    frame_length,
)

if TYPE_CHECKING:
    from qlocal.engine.engine import Engine

log = logging.getLogger("qlocal.rank")
READ_BYTES = 1 << 20


class Closed(Exception):
    """The other end of the socket is gone, or asks to shut down."""


class Connection:
    """Frames over the socket. Reads what has arrived, without waiting unless asked to."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def send(self, message: Message) -> None:
        try:
            self._socket.sendall(encode(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self, *, wait: bool) -> list[Message]:
        """Return the messages that have arrived; with `wait`, at least something has been read."""
        while select.select([self._socket], [], [], None if wait else 0)[0]:
            self._read()
            wait = False
        messages = []
        while (payload := self._next_payload()) is not None:
            messages.append(decode(payload))
        return messages

    def _read(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except ConnectionResetError as error:
            raise Closed from error
        if not data:
            raise Closed
        self._buffer += data

    def _next_payload(self) -> bytes | None:
        if len(self._buffer) < HEADER.size:
            return None
        end = HEADER.size + frame_length(bytes(self._buffer[: HEADER.size]))
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return payload


def serve(connection: Connection) -> None:
    """Load the model that the first message names, then step while there is work. Ends by `Closed`."""
    engine: Engine | None = None
    while True:
        idle = engine is None or not engine.has_work
        for message in connection.receive(wait=idle):
            if isinstance(message, Load):
                engine = _load(message, connection)
            else:
                _handle(message, engine, connection)
        if engine is not None and engine.has_work:
            for answer in engine.step():
                connection.send(answer)


def _load(load: Load, connection: Connection) -> Engine:
    from qlocal.engine.engine import Engine  # torch: seconds, and it reads the environment that main has set

    engine = Engine.load(load, connection.send)
    connection.send(engine.ready)
    return engine


def _handle(message: Message, engine: Engine | None, connection: Connection) -> None:
    if isinstance(message, Shutdown):
        raise Closed
    if engine is None:
        log.warning("%s before Load is ignored", type(message).__name__)
    elif isinstance(message, Submit):
        engine.submit(message)
    elif isinstance(message, Cancel):
        engine.cancel(message.request_id)
    elif isinstance(message, Ping):
        usage = engine.usage()
        connection.send(Pong(message.nonce, usage.running, usage.waiting, usage.free_blocks, usage.total_blocks))


def _failure(error: Exception) -> Failed:
    """Say in one sentence why the rank ends."""
    if isinstance(error, QLocalError):
        return Failed(error.message, error.hint)
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return Failed("the engine ran out of memory", "Choose a smaller context or a smaller model.")
    log.error("the engine failed", exc_info=error)
    return Failed(f"the engine failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def main(argv: list[str] | None = None) -> int:
    """Run until the socket closes. Returns 0 then, 1 after an error, which was sent as `Failed`."""
    parser = argparse.ArgumentParser(prog="qlocal.engine.rank")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a connected stream socket")
    arguments = parser.parse_args(argv)
    # Ctrl-C in a terminal reaches the whole process group; when to stop is the server's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_threads_calm()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    connection = Connection(socket.socket(fileno=arguments.fd))
    try:
        serve(connection)
    except Closed:
        return 0
    except Exception as error:  # whatever it was: the server is told, and the process ends
        return _report(error, connection)
    return 0


def _report(error: Exception, connection: Connection) -> int:
    try:
        connection.send(_failure(error))
    except Closed:
        log.warning("the server is gone, nobody to tell")
    return 1


if __name__ == "__main__":
    sys.exit(main())
