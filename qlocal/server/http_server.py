"""uvicorn around the application: limits, signals, and the end when nobody has needed the server for a while."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from qlocal.config import ServeOptions
from qlocal.errors import RequestError
from qlocal.schema import EngineState
from qlocal.server.access import MAX_HEADER_BYTES, AccessRules
from qlocal.server.app import build_app
from qlocal.server.own_requests import LoadRequest
from qlocal.server.service import Service
from qlocal.server.shapes import error_body

MAX_CONNECTIONS = 256
HEADER_TIMEOUT_S = 10.0
SHUTDOWN_S = 3

log = logging.getLogger(__name__)


@dataclass
class Activity:
    """Counts requests in flight; a stream counts as long as it is open."""

    open_requests: int = 0
    last_end_s: float = 0.0

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Return `app`, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            self.open_requests += 1
            try:
                await app(scope, receive, send)
            finally:
                self.open_requests -= 1
                self.last_end_s = time.monotonic()

        return counted

    @property
    def idle_s(self) -> float:
        return 0.0 if self.open_requests else time.monotonic() - self.last_end_s


def serve(service: Service, rules: AccessRules, listener: socket.socket, options: ServeOptions) -> None:
    """Run uvicorn on `listener` with a service that is built already."""
    asyncio.run(_serve(service, rules, listener, options))


async def _serve(service: Service, rules: AccessRules, listener: socket.socket, options: ServeOptions) -> None:
    activity = Activity(last_end_s=time.monotonic())
    server: _Server

    def stop() -> None:
        server.should_exit = True

    app = build_app(service, rules, options.engine, stop)
    server = _Server(
        uvicorn.Config(
            activity.wrap(app),
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
    idle = asyncio.create_task(_stop_when_idle(activity, service, options.idle_exit_s, stop))
    try:
        if options.model is not None:
            await _load_first(service, options)
        await server.serve(sockets=[listener])
    finally:
        idle.cancel()
        await service.close()


class PatientProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, with an end to the patience for a request's headers, a limit on connections, and
    errors of the protocol in the shape of all others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn types it
        super().connection_made(transport)
        self._waits_for_headers = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse("503 Service Unavailable", f"the server has {MAX_CONNECTIONS} connections, which is the limit")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse("400 Bad Request", "the request is not valid HTTP/1.1, or its headers are longer than 16 KiB")

    def _refuse(self, status: str, message: str) -> None:
        kind = "server_error" if status.startswith("5") else "invalid_request_error"
        body = json.dumps(error_body(message, kind=kind)).encode()
        retry = b"Retry-After: 1\r\n" if status.startswith("5") else b""
        self.transport.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n".encode()
            + retry
            + b"Connection: close\r\n\r\n"
            + body
        )
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE
        if waits and self._waits_for_headers.cancelled():
            self._waits_for_headers = self.loop.call_later(HEADER_TIMEOUT_S, self.transport.close)
        elif not waits:
            self._waits_for_headers.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waits_for_headers.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process before the engine is ended."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _load_first(service: Service, options: ServeOptions) -> None:
    assert options.model is not None, "the caller has looked"
    try:
        await service.load(LoadRequest(model=options.model, max_context=None, devices=None, draft=None), options.engine)
    except RequestError as error:
        # The server stays: its status says what is wrong, and another model can be loaded.
        log.error("%s", error)
        service.board.update(state=EngineState.FAILED, model=options.model, path=None, error=str(error))


async def _stop_when_idle(
    activity: Activity, service: Service, idle_exit_s: float | None, stop: Callable[[], None]
) -> None:
    if idle_exit_s is None:
        return
    while activity.idle_s < idle_exit_s or service.board.status.state is EngineState.LOADING:
        await asyncio.sleep(min(1.0, idle_exit_s / 4))
    log.info("nobody asked for anything in %g s: the server ends", idle_exit_s)
    stop()
