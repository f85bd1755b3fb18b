"""Who may speak to the server: Host, Origin, token, content type and size, checked before any route runs.

A browser page must not reach a server on the loopback: not by a name that resolves here (Host), not by a
request it may send without asking (Origin, content type).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qlocal.errors import RequestError
from qlocal.server.errors import error_response

MAX_BODY_BYTES = 32 << 20
MAX_HEADER_BYTES = 16 << 10
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class AccessRules:
    """token: required as bearer when given (TCP). port: required in Host when given."""

    token: str | None = None
    port: int | None = None
    allowed_origins: Collection[str] = ()


class Access:
    """ASGI middleware that applies the rules."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            _check_size(scope)
            self._check_host(headers)
            self._check_origin(headers)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        send = _with_origin(send, headers.get("origin"))
        if scope["method"] == "OPTIONS" and "origin" in headers:
            await _preflight()(scope, receive, send)
            return
        try:
            self._check_token(headers)
            _check_content(scope["method"], headers)
        except RequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name, _, port = (hosts[0] if len(hosts) == 1 else "").lower().rpartition(":")
        if not port.isdecimal() or not name:  # no port was given
            name, port = f"{name}:{port}" if name else port, ""
        expected = self._rules.port
        if name not in LOOPBACK_NAMES or (expected is not None and port != str(expected)):
            raise RequestError("the Host header must name this machine's loopback and port", status=403, param="Host")

    def _check_origin(self, headers: Headers) -> None:
        origins = headers.getlist("origin")
        if any(origin not in self._rules.allowed_origins for origin in origins):
            raise RequestError(
                "pages of other origins may not use this server",
                status=403,
                param="Origin",
                hint="Allow one with `qlocal serve --allow-origin`.",
            )

    def _check_token(self, headers: Headers) -> None:
        if self._rules.token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self._rules.token.encode()):
            raise RequestError(
                "the bearer token is missing or wrong",
                status=401,
                code="invalid_api_key",
                hint="`qlocal serve` prints where its token file is.",
            )


def _check_size(scope: Scope) -> None:
    """The HTTP library bounds headers that come in pieces; those that come at once are measured here."""
    line = len(scope["raw_path"]) + len(scope["query_string"])
    if line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise RequestError(f"the headers have more than {MAX_HEADER_BYTES} bytes, which is the limit", status=431)


def _check_content(method: str, headers: Headers) -> None:
    if method != "POST":
        return
    length = headers.get("content-length")
    if length is not None and length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise RequestError(f"the body has {length} bytes, the limit is {MAX_BODY_BYTES}", status=413)
    has_body = headers.get("transfer-encoding") is not None or length not in (None, "0")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if (has_body or kind) and kind != "application/json":
        raise RequestError(f"the content type is '{kind[:80]}', expected application/json", status=415)


def _preflight() -> Response:
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Api-Key",
        "Access-Control-Max-Age": "600",
    }
    return JSONResponse({}, headers=headers)


def _with_origin(send: Send, origin: str | None) -> Send:
    """Return a send that adds the CORS header; the origin has been checked."""
    if origin is None:
        return send

    async def send_with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return send_with_origin
