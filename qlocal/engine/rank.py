"""A rank's process: `python -m qlocal.engine.rank --fd N`, with one end of a socket pair as descriptor N.

The first message says what it becomes. Load: rank 0, which talks to the server, reads frames between steps, and starts
the other ranks of a tensor split; or, as another node, the first rank of its machine. Join: one of the others. The
process ends when the other end closes. Nothing else starts or stops it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from qlocal.devices import keep_threads_calm
from qlocal.endings import leave_process
from qlocal.engine.connection import Closed, Connection
from qlocal.errors import QLocalError, is_out_of_memory
from qlocal.protocol import (
    Cancel,
    Failed,
    FindSession,
    Join,
    Load,
    Message,
    Ping,
    Pong,
    SaveSession,
    Shutdown,
    Submit,
    Vocabulary,
    encode,
)

if TYPE_CHECKING:
    from qlocal.engine.engine import Engine

log = logging.getLogger("qlocal.rank")
KEEP_AFTER_S = 3.0
"""Quiet after which conversations are written to disk, a block at a time."""
KEEP_AT_END_S = 8.0
"""Less than the server waits for an orderly end."""
_NO_MEMORY = Failed("the engine ran out of memory", "Choose a smaller context or a smaller model.")
_NO_MEMORY_FRAME = encode(_NO_MEMORY)
"""Made while there is memory to make it."""


def serve(connection: Connection) -> None:
    """Become what the first message says, and do that to the end. A server's socket ends it by `Closed`."""
    first, rest = _first(connection)
    if isinstance(first, Join) or (first.nodes is not None and first.nodes.rank > 0):
        _follow(first, connection)
    else:
        _lead(first, rest, connection)


def _first(connection: Connection) -> tuple[Join | Load, list[Message]]:
    """Return the message that says what to become, and what has come after it."""
    while True:
        messages = connection.receive(wait=True)
        for index, message in enumerate(messages):
            if isinstance(message, (Join, Load)):
                return message, messages[index + 1 :]
            if isinstance(message, Shutdown):
                raise Closed
            log.warning("%s before Load is ignored", type(message).__name__)


def _lead(load: Load, messages: list[Message], connection: Connection) -> None:
    """Load the model, then step while there is work. Ends by `Closed`."""
    from qlocal.engine.loading import load_engine  # torch: seconds, and it reads the environment that main has set

    engine = load_engine(load, connection.send)
    is_keeping = False
    during: list[Message] = []

    def given_up() -> set[str]:
        """Return the requests that are cancelled by what has come during the step."""
        during.extend(connection.receive(wait=False))
        return {message.request_id for message in during if isinstance(message, Cancel)}

    try:
        connection.send(engine.ready)
        while True:
            for message in messages:
                _handle(message, engine, connection)
            if engine.has_work:
                for answer in engine.step(given_up):
                    connection.send(answer)
            timeout_s = (0.0 if is_keeping else KEEP_AFTER_S) if engine.has_unkept else None
            wait = not during and not engine.has_work
            messages = during + connection.receive(wait=wait, beside=engine.rank_sockets, timeout_s=timeout_s)
            during.clear()
            engine.check_ranks()
            is_keeping = not messages and engine.has_unkept
            if is_keeping:
                engine.keep_next()
    except Closed:
        engine.keep_all(KEEP_AT_END_S)
        engine.close()
        raise


def _follow(first: Join | Load, connection: Connection) -> None:
    """Load one rank's part and compute what rank 0 tells, to its orderly end."""
    from qlocal.engine.following import run  # torch, see above

    threading.Thread(target=_end_with, args=(connection.socket,), name="end with the parent", daemon=True).start()
    run(first, connection.send)


def _end_with(sock: socket.socket) -> None:
    """End this process when whoever started it says so or is gone, whatever it is doing."""
    with suppress(ConnectionError):
        sock.recv(1)
    os._exit(0)


def _handle(message: Message, engine: Engine, connection: Connection) -> None:
    if isinstance(message, Shutdown):
        raise Closed
    if isinstance(message, Submit):
        engine.submit(message)
    elif isinstance(message, Vocabulary):
        engine.take_vocabulary(message)
    elif isinstance(message, Cancel):
        engine.cancel(message.request_id)
    elif isinstance(message, SaveSession):
        connection.send(engine.save_session(message))
    elif isinstance(message, FindSession):
        connection.send(engine.find_session(message))
    elif isinstance(message, Ping):
        usage = engine.usage()
        cached = None if message.input_ids is None else engine.cached_tokens(message.input_ids)
        connection.send(
            Pong(message.nonce, usage.running, usage.waiting, usage.free_blocks, usage.total_blocks, cached)
        )


def _failure(error: Exception) -> Failed:
    """Say in one sentence why the rank ends."""
    if isinstance(error, QLocalError):
        return Failed(error.message, error.hint)
    if is_out_of_memory(error):
        return _NO_MEMORY
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
    except MemoryError:
        with suppress(OSError):
            connection.socket.sendall(_NO_MEMORY_FRAME)
    return 1


if __name__ == "__main__":
    leave_process(main())
