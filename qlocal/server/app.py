"""The routes. Translates HTTP to the service and its answers to HTTP; decides nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qlocal.config import EngineOptions
from qlocal.errors import QLocalError, RequestError
from qlocal.schema import PromptProgress, QueuePlace, Status
from qlocal.server import errors, generation, json_body, openapi, scoring, sessions
from qlocal.server.access import MAX_BODY_BYTES, Access, AccessRules
from qlocal.server.generation import Delta, Ended, Job, Part
from qlocal.server.jobs import Prompts
from qlocal.server.own_requests import CountRequest, LoadRequest, SaveRequest, ScoreRequest, TokenizeRequest
from qlocal.server.request_base import validate
from qlocal.server.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Options
from qlocal.server.service import Service
from qlocal.server.shapes import ChatShape, CompletionShape, Envelope, Shape, model_object
from qlocal.server.streaming import DONE, ClientGone, EventStream, comment, event, unless_gone
from qlocal.server.text import ModelText

BODY_TIMEOUT_S = 60.0
log = logging.getLogger(__name__)


def build_app(service: Service, rules: AccessRules, options: EngineOptions, on_stop: Callable[[], None]) -> Starlette:
    """Return the application. `options` are those of later loads; `on_stop` makes the server end."""
    routes = Routes(service, options, on_stop)
    return Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.one_model),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.complete, methods=["POST"]),
            Route("/v1/embeddings", routes.embed, methods=["POST"]),
            Route("/openapi.json", routes.openapi),
            Route("/qlocal/status", routes.status),
            Route("/qlocal/events", routes.events),
            Route("/qlocal/load", routes.load, methods=["POST"]),
            Route("/qlocal/count", routes.count, methods=["POST"]),
            Route("/qlocal/score", routes.score, methods=["POST"]),
            Route("/qlocal/plan", routes.plan, methods=["POST"]),
            Route("/qlocal/variants", routes.variants),
            Route("/qlocal/tokenize", routes.tokenize, methods=["POST"]),
            Route("/qlocal/sessions", routes.sessions, methods=["GET", "DELETE"]),
            Route("/qlocal/sessions", routes.save, methods=["POST"]),
            Route("/qlocal/sessions/{name}", routes.restore, methods=["POST"]),
            Route("/qlocal/sessions/{name}", routes.forget_saved, methods=["DELETE"]),
            Route("/qlocal/stop", routes.stop, methods=["POST"]),
        ],
        middleware=[Middleware(Access, rules=rules)],
        exception_handlers={
            QLocalError: errors.on_expected,
            HTTPException: errors.on_http,
            ClientGone: errors.on_client_gone,
            Exception: errors.on_unexpected,
        },
    )


class Routes:
    """The handlers."""

    def __init__(self, service: Service, options: EngineOptions, on_stop: Callable[[], None]) -> None:
        self._service = service
        self._options = options
        self._on_stop = on_stop

    async def health(self, request: Request) -> Response:
        """200 when the engine produces tokens, else 503."""
        await unless_gone(self._service.check_health(), request)
        usage = await unless_gone(self._service.usage(), request)
        return JSONResponse({"status": "ok", "model": self._service.model(None).name, "engine": usage})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._model_objects()})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        for found in self._model_objects():
            if found["id"] == name:
                return JSONResponse(found)
        raise RequestError(f"the model '{name[:200]}' is not loaded", status=404, param="model", code="model_not_found")

    async def chat(self, request: Request) -> ASGIApp:
        body = validate(ChatRequest, await _json(request))
        model = self._service.model(body.model)
        job = await unless_gone(self._prompts(model).chat_job(body), request)
        return await self._answer(request, job, body, ChatShape(_envelope(job, model, body, bool(body.logprobs))))

    async def complete(self, request: Request) -> ASGIApp:
        body = validate(CompletionRequest, await _json(request))
        model = self._service.model(body.model)
        job = await unless_gone(self._prompts(model).completion_job(body), request)
        shape = CompletionShape(_envelope(job, model, body, body.logprobs is not None))
        return await self._answer(request, job, body, shape)

    async def embed(self, request: Request) -> Response:
        body = validate(EmbeddingRequest, await _json(request))
        model = self._service.model(body.model)
        raise RequestError(
            f"'{model.name}' gives no embeddings: it was trained to go on with texts, not to compare them",
            param="model",
            code="embeddings_unsupported",
            hint="Use a model that was trained for embeddings, with a server that runs those.",
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document())

    async def status(self, request: Request) -> Response:
        return JSONResponse(self._service.board.status.to_json())

    async def events(self, request: Request) -> ASGIApp:
        return EventStream(_status_events(self._service.board.changes()))

    async def load(self, request: Request) -> Response:
        body = validate(LoadRequest, await _json(request))
        await self._service.load(body, self._options)
        return JSONResponse(self._service.board.status.to_json(), status_code=202)

    async def count(self, request: Request) -> Response:
        body = validate(CountRequest, await _json(request))
        prompts = self._prompts(self._service.model(None))
        ids = await unless_gone(prompts.encode_chat(body.messages, body.tools or ()), request)
        cached = await unless_gone(self._service.cached_tokens(ids), request)
        return JSONResponse({"prompt_tokens": len(ids), "max_context": prompts.max_context, "cached_tokens": cached})

    async def tokenize(self, request: Request) -> Response:
        body = validate(TokenizeRequest, await _json(request))
        prompts = self._prompts(self._service.model(None))
        return JSONResponse(await unless_gone(scoring.tokens(body, prompts), request))

    async def score(self, request: Request) -> Response:
        body = validate(ScoreRequest, await _json(request))
        prompts = self._prompts(self._service.model(body.model))
        return JSONResponse(await unless_gone(scoring.scores(body, prompts, self._service.engine), request))

    async def plan(self, request: Request) -> Response:
        """Tell what loading a model would take, without loading it."""
        body = validate(LoadRequest, await _json(request))
        return JSONResponse(await unless_gone(self._service.plan(body, self._options), request))

    async def variants(self, request: Request) -> Response:
        """Tell which other checkpoints are variants of the loaded one: this takes the opening of all vocabularies."""
        found = await unless_gone(self._service.variants(), request)
        return JSONResponse({"variants": [variant.to_json() for variant in found]})

    async def sessions(self, request: Request) -> Response:
        """Tell what is kept of conversations on disk; DELETE removes it."""
        act = sessions.forget if request.method == "DELETE" else sessions.stored
        return JSONResponse(await asyncio.to_thread(act, self._options.sessions))

    async def save(self, request: Request) -> Response:
        body = validate(SaveRequest, await _json(request))
        prompts = self._prompts(self._service.model(None))
        return JSONResponse(await unless_gone(sessions.save(body, prompts, self._service.engine), request))

    async def restore(self, request: Request) -> Response:
        prompts, name = self._prompts(self._service.model(None)), request.path_params["name"]
        return JSONResponse(await unless_gone(sessions.restore(name, prompts, self._service.engine), request))

    async def forget_saved(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(await asyncio.to_thread(sessions.forget_saved, self._options.sessions, name))

    async def stop(self, request: Request) -> Response:
        log.info("asked to stop")
        self._on_stop()
        return JSONResponse(self._service.board.status.to_json(), status_code=202)

    def _prompts(self, model: ModelText) -> Prompts:
        return Prompts(model, self._service.max_context)

    async def _answer(self, request: Request, job: Job, body: Options, shape: Shape) -> ASGIApp:
        parts = generation.run(job, self._service.engine, shape.envelope.model, self._service.max_context)
        if body.stream:
            return EventStream(_chunks(parts, job, shape, body.wants_usage))
        return JSONResponse(await unless_gone(_whole(parts, shape), request))

    def _model_objects(self) -> list[dict[str, Any]]:
        try:
            model = self._service.model(None)
        except RequestError:  # nothing is loaded, so nothing is listed
            return []
        return [model_object(model, self._service.max_context, self._service.created)]


def _envelope(job: Job, model: ModelText, body: Options, with_logprobs: bool) -> Envelope:
    return Envelope(job.request_id, model, with_logprobs, with_token_ids=bool(body.return_token_ids))


async def _json(request: Request) -> dict[str, Any]:
    """Return the body as a JSON object, read up to the limit whatever its length was said to be."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise RequestError(f"the body is larger than the limit of {MAX_BODY_BYTES} bytes", status=413)
    except TimeoutError as error:
        raise RequestError(f"the body was not complete after {BODY_TIMEOUT_S:g} s", status=408) from error
    return await asyncio.to_thread(json_body.parse, bytes(body))


async def _whole(parts: AsyncGenerator[Part, None], shape: Shape) -> dict[str, Any]:
    deltas: list[Delta] = []
    endings: list[Ended] = []
    async with contextlib.aclosing(parts):
        async for part in parts:
            if isinstance(part, Delta):
                deltas.append(part)
            elif isinstance(part, Ended):
                endings.append(part)
            elif not isinstance(part, QueuePlace | PromptProgress):
                return shape.whole(deltas, endings, part)
    raise AssertionError("a generation ends with its usage or raises")


async def _chunks(
    parts: AsyncGenerator[Part, None], job: Job, shape: Shape, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed answer. An error after the headers is an event, and no [DONE] follows it."""
    # With include_usage every chunk has the key, and only the last one a value.
    extra = {"usage": None} if wants_usage else {}
    async with contextlib.aclosing(parts):
        try:
            for opening in shape.opening(job.num_choices):
                yield event(opening | extra)
            async for part in parts:
                if isinstance(part, Delta):
                    yield event(shape.delta(part) | extra)
                elif isinstance(part, Ended):
                    yield event(shape.ended(part) | extra)
                elif isinstance(part, QueuePlace | PromptProgress):
                    yield comment(part.to_json())
                elif wants_usage:
                    yield event(shape.usage_chunk(part))
        except QLocalError as error:
            log.warning("%s ends with an error: %s", job.request_id, error)
            yield event(errors.body_of(error))
            return
    yield DONE


async def _status_events(changes: AsyncIterator[Status]) -> AsyncGenerator[bytes, None]:
    async for status in changes:
        yield event(status.to_json())
