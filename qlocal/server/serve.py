"""`qlocal serve`: makes the sockets, the guard and the service, and runs them until they are told to stop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qlocal.catalog import resolve
from qlocal.config import ServeOptions, config_folder, load_settings
from qlocal.devices import keep_little_freed_memory
from qlocal.guard.client import Guard
from qlocal.launch import own_address
from qlocal.server.access import AccessRules
from qlocal.server.bind import bind_tcp, bind_unix, read_or_make_token
from qlocal.server.engine_client import EngineClient
from qlocal.server.http_server import serve
from qlocal.server.open_text import text_opener
from qlocal.server.preflight import check_plan
from qlocal.server.seen_templates import SeenTemplates
from qlocal.server.service import Service
from qlocal.server.status import StatusBoard


def run_server(options: ServeOptions, announce: Callable[[str], None] = print) -> None:
    """Serve until stopped by signal, by POST /qlocal/stop, or by being idle.

    announce: gets one line that says where the server listens. UsageError when it cannot listen there.
    """
    keep_little_freed_memory()
    settings = load_settings()
    with ExitStack() as stack:
        rules, listener = stack.enter_context(_listen(options, announce))
        guard = stack.enter_context(contextlib.closing(Guard()))
        board = StatusBoard()
        service = Service(
            EngineClient(board),
            board,
            text_opener(guard),
            lambda name: resolve(name, settings.home),
            check_plan,
            SeenTemplates(settings.home / "seen_templates"),
        )
        serve(service, rules, listener, options)


@contextmanager
def _listen(options: ServeOptions, announce: Callable[[str], None]) -> Iterator[tuple[AccessRules, socket.socket]]:
    if options.port is None:
        path = options.socket or own_address().socket
        assert path is not None, "the own server listens on a socket"
        with bind_unix(path) as listener:
            announce(f"listening on {path}")
            yield AccessRules(allowed_origins=options.allowed_origins), listener
        return
    token_path = options.token_file or default_token_file()
    token = read_or_make_token(token_path)
    with bind_tcp(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        announce(f"listening on http://{host}:{port}/v1, token in {token_path}")
        yield AccessRules(token, port, options.allowed_origins), listener


def default_token_file() -> Path:
    """Return where the token of TCP servers is kept."""
    return config_folder() / "token"
