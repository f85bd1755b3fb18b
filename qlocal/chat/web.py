"""The chat in a browser of this machine: a page, a websocket, and a chat of its own for every window.

textual-serve brings the terminal for the browser and speaks with the chat's process. Its own server is not used: it
asks for no token, takes any Host, lists its files, and its page loads fonts from elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shlex
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path

import aiohttp
from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

HOST = "127.0.0.1"
MAX_WINDOWS = 8
MAX_CELLS = 1000
MAX_MESSAGE_BYTES = 4 << 20
"""Of one message of the browser: a large paste."""
END_S = 10.0
"""For a chat to end in, once its window is closed."""

_PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><title>qlocal</title>
<link rel="stylesheet" href="static/css/xterm.css"><link rel="stylesheet" href="page.css">
<script src="static/js/textual.js"></script></head>
<body><div id="terminal" class="textual-terminal" data-session-websocket-url="{socket}" data-font-size="16"></div>
<p id="end">The chat has ended. Reload this page to open it again.</p></body></html>
"""
_STYLE = """
@font-face { font-family: "Roboto Mono"; src: url("static/fonts/RobotoMono-VariableFont_wght.ttf"); }
html, body { margin: 0; height: 100%; background: #0c181f; color: #ddd; font-family: "Roboto Mono", monospace; }
#terminal { position: absolute; inset: 0; }
#end { display: none; position: absolute; inset: 40% 0 auto; text-align: center; }
body.-closed #end { display: block; }
body.-closed #terminal { opacity: 0.2; }
"""
_STATIC = ("css/xterm.css", "js/textual.js", "fonts/RobotoMono-VariableFont_wght.ttf")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; "
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Window(AppService):
    """The chat of one window."""

    def __init__(self, argv: Sequence[str], socket: web.WebSocketResponse) -> None:
        async def close() -> None:
            await socket.close()

        super().__init__(
            shlex.join(argv),
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=close,
            download_manager=DownloadManager(),
        )
        self._argv = list(argv)

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        """Start the chat without a shell between, so that its end is seen."""
        self._process = process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._build_environment(width=width, height=height),
        )
        self._stdin = process.stdin
        return process

    async def run(self) -> None:
        """Run the chat; a window whose chat could not begin is closed too."""
        await super().run()
        await self.remote_close()

    async def end(self) -> None:
        """Have the chat end in order, and wait for it; one that does not is killed, which loses a second at most."""
        process = self._process
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop(), END_S)
        if process is None:
            return
        self.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()
            await process.wait()


class ChatPage:
    """What answers at one port: everything lies below the token, for this machine's own names alone."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """arguments: of `qlocal chat`, for every window's process."""
        self._argv = [sys.executable, "-m", "qlocal.cli", "chat", *arguments]
        self._token = secrets.token_urlsafe(24)
        self._port = 0
        self._windows: set[web.WebSocketResponse] = set()

    @contextlib.asynccontextmanager
    async def serve(self, port: int) -> AsyncIterator[str]:
        """Listen on the loopback (port 0: any free one); gives the URL to open. Closing ends all chats in order."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 16)
        app.add_routes(
            [
                web.get("/{token}/", self._page),
                web.get("/{token}/page.css", self._style),
                web.get("/{token}/static/{path:.+}", self._static),
                web.get("/{token}/ws", self._window),
            ]
        )
        app.on_shutdown.append(self._close)
        # No access log: its lines would have the token in them.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=END_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, HOST, port)
            await site.start()
            self._port = runner.addresses[0][1]
            yield f"http://{HOST}:{self._port}/{self._token}/"
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what does not know the token, and pages of elsewhere that a browser lets ask."""
        names = {f"{name}:{self._port}" for name in (HOST, "localhost")}
        origin = request.headers.get("Origin")
        if request.headers.get("Host") not in names or (origin and origin not in {f"http://{name}" for name in names}):
            raise web.HTTPForbidden(text="This page is for browsers of this machine alone.\n")
        given = request.match_info.get("token", "")
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            raise web.HTTPNotFound(text="Open the address that `qlocal chat --web` has printed.\n")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(
                {
                    "Content-Security-Policy": _POLICY + f"connect-src ws://{request.host}",
                    "Referrer-Policy": "no-referrer",  # it would carry the token
                    "X-Content-Type-Options": "nosniff",
                    "Cache-Control": "no-store",
                }
            )
        return response

    async def _page(self, request: web.Request) -> web.Response:
        socket = f"ws://{request.host}/{self._token}/ws"
        return web.Response(text=_PAGE.replace("{socket}", socket), content_type="text/html")

    async def _style(self, request: web.Request) -> web.Response:
        return web.Response(text=_STYLE, content_type="text/css")

    async def _static(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        if path not in _STATIC:
            raise web.HTTPNotFound
        return web.FileResponse(Path(str(resources.files("textual_serve"))) / "static" / path)

    async def _window(self, request: web.Request) -> web.WebSocketResponse:
        if "Origin" not in request.headers:
            raise web.HTTPForbidden(text="A browser tells its origin.\n")
        if len(self._windows) >= MAX_WINDOWS:
            raise web.HTTPServiceUnavailable(text=f"{MAX_WINDOWS} windows are open already.\n")
        socket = web.WebSocketResponse(heartbeat=15, max_msg_size=MAX_MESSAGE_BYTES)
        self._windows.add(socket)
        try:
            await socket.prepare(request)
            service = _Window(self._argv, socket)
            await service.start(_cells(request, "width", 80), _cells(request, "height", 24))
            try:
                await _hand_on(socket, service)
            finally:
                await service.end()
        finally:
            self._windows.discard(socket)
        return socket

    async def _close(self, app: web.Application) -> None:
        for socket in list(self._windows):
            await socket.close(code=aiohttp.WSCloseCode.GOING_AWAY)


async def _hand_on(socket: web.WebSocketResponse, service: AppService) -> None:
    """Give the chat what the browser says; what is none of textual-serve's messages ends the window."""
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            return
        try:
            match message.json():
                case ["stdin", str(text)]:
                    await service.send_bytes(text.encode("utf-8", "replace"))
                case ["resize", {"width": int(width), "height": int(height)}]:
                    await service.set_terminal_size(_bounded(width), _bounded(height))
                case ["ping", data]:
                    await socket.send_json(["pong", data])
                case ["blur", *_]:
                    await service.blur()
                case ["focus", *_]:
                    await service.focus()
                case _:
                    return
        except (ValueError, RecursionError):
            return


def _cells(request: web.Request, name: str, usual: int) -> int:
    text = request.query.get(name, "")
    return _bounded(int(text)) if text.isdecimal() and len(text) < 9 else usual


def _bounded(cells: int) -> int:
    return min(max(cells, 1), MAX_CELLS)


async def serve_page(arguments: Sequence[str], port: int, announce: Callable[[str], None]) -> None:
    """Serve until this is cancelled. OSError where the port is taken."""
    async with ChatPage(arguments).serve(port) as url:
        announce(url)
        await asyncio.Event().wait()
