"""Errors as HTTP answers: always under `error`, never a traceback, and no retry where it could not help."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qlocal.errors import EngineError, QLocalError, RequestError
from qlocal.server.shapes import Json, error_body
from qlocal.server.streaming import ClientGone

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
STATUS_CLIENT_GONE = 499
RETRY_AFTER_S = 5

log = logging.getLogger(__name__)


def body_of(error: QLocalError) -> Json:
    """Return the error object of an expected failure."""
    if isinstance(error, RequestError):
        return error_body(str(error), kind=_kind(error.status), param=error.param, code=error.code)
    code = "engine_error" if isinstance(error, EngineError) else None
    return error_body(str(error), kind="server_error", code=code)


def error_response(error: QLocalError) -> Response:
    """Return the HTTP answer of an expected failure: 4xx for requests, 503 for a lost engine."""
    status = error.status if isinstance(error, RequestError) else 503
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status >= 500:
        loading = isinstance(error, RequestError) and error.code == "model_loading"
        headers = {"Retry-After": str(RETRY_AFTER_S)} if loading else {"x-should-retry": "false"}
    return JSONResponse(body_of(error), status_code=status, headers=headers)


async def on_expected(request: Request, error: Exception) -> Response:
    assert isinstance(error, QLocalError), "registered for this class"
    return error_response(error)


async def on_http(request: Request, error: Exception) -> Response:
    """Routes that do not exist, and methods that they do not have."""
    assert isinstance(error, HTTPException), "registered for this class"
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return JSONResponse(
        error_body(message, kind=_kind(error.status_code)), status_code=error.status_code, headers=error.headers
    )


async def on_client_gone(request: Request, error: Exception) -> Response:
    assert isinstance(error, ClientGone), "registered for this class"
    return Response(status_code=STATUS_CLIENT_GONE)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A mistake of ours: the log has the traceback, the client one sentence."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = error_body("an internal error; the server's log says more", kind="server_error", code="internal_error")
    return JSONResponse(body, status_code=500, headers={"x-should-retry": "false"})


def _kind(status: int) -> str:
    return KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
