"""Server-sent events: encoding, pings while nothing comes, and the end of everything when the client is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

PING_S = 10.0
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection; nobody is left to answer."""


def event(value: Any) -> bytes:
    """Return one event with `value` as JSON in ASCII: some clients take U+2028 and U+0085 for line ends."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n\n"


def comment(value: Any) -> bytes:
    """Return `value` as JSON in a comment that begins with `qlocal`: our own clients read it, all others skip it."""
    return b": qlocal " + json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n\n"


async def with_pings(events: AsyncGenerator[bytes, None], every_s: float = PING_S) -> AsyncIterator[bytes]:
    """Yield `events`, and a comment whenever none came for `every_s`, so that no proxy or client gives up."""
    async with contextlib.aclosing(events):
        waiting: asyncio.Task[bytes] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(events))
                done, _ = await asyncio.wait([waiting], timeout=every_s)
                if not done:
                    yield PING
                    continue
                finished, waiting = waiting, None
                try:
                    chunk = finished.result()
                except StopAsyncIteration:
                    return
                yield chunk
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait([waiting])


class EventStream:
    """An ASGI response of events. Ends its generator at once when the client disconnects, not at the next write."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with contextlib.suppress(ClientGone):
            await _unless_gone(self._pump(send), receive)

    async def _pump(self, send: Send) -> None:
        async with contextlib.aclosing(with_pings(self._events)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(work: Coroutine[Any, Any, T], request: Request) -> T:
    """Return what `work` returns; when the client disconnects first, cancel it and raise ClientGone.

    The request's body must have been read.
    """
    return await _unless_gone(work, request.receive)


async def _unless_gone(work: Coroutine[Any, Any, T], receive: Callable[[], Awaitable[Any]]) -> T:
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait([working, watching])


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
