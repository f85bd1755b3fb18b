"""Talk to a server: our own over a Unix socket, or any OpenAI-compatible one by URL. Turns HTTP into typed events.

Knows neither the screen nor the store. Cancelling the task that reads an answer closes its connection,
which is how the server learns that it may stop.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx

from qlocal.chat import wire
from qlocal.chat.events import AnswerEvent, Done, Failure, TokenCount
from qlocal.chat.link_state import ShownPlan, Variant
from qlocal.chat.logprobs import Scored
from qlocal.chat.sse import OWN_COMMENT, event_data
from qlocal.errors import ServerError, UsageError
from qlocal.launch import Address
from qlocal.schema import Status

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 30.0
# A status event or a ping comes at least every 10 s; three missed ones mean that the server hangs.
EVENTS_TIMEOUT_S = 35.0

HIDDEN = "[key]"

ChatMessage = dict[str, Any]
"""`{"role": ..., "content": ...}` as OpenAI's API has it, with its tool calls where there are any."""


@dataclass(frozen=True)
class ServedModel:
    """One entry of /v1/models; `max_context` where the server tells it."""

    name: str
    max_context: int | None = None


class ChatClient:
    """One server; `name` is what messages call it. The /qlocal routes are for our own one alone.

    Build it with `ChatClient.at` or `ChatClient.to_url`; close it with `aclose`.
    """

    def __init__(self, http: httpx.AsyncClient, *, name: str, token: str | None = None) -> None:
        """token: what is taken out of what the server says went wrong: it would reach the history."""
        self._http = http
        self.name = name
        self._token = token

    @classmethod
    def at(cls, address: Address) -> ChatClient:
        """Return a client of our own server."""
        transport = httpx.AsyncHTTPTransport(uds=str(address.socket)) if address.socket else None
        return cls(_http_client(address.url, address.token, transport), name="the server")

    @classmethod
    def to_url(cls, url: str, token: str | None = None) -> ChatClient:
        """Return a client of any OpenAI-compatible server; `url` with or without `/v1`. UsageError if it is no URL."""
        base = url.strip().rstrip("/").removesuffix("/v1")
        try:
            parsed = httpx.URL(base)
        except httpx.InvalidURL as error:
            raise UsageError(f"--endpoint {url!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"--endpoint {url!r} is not a URL", hint="Give one like http://localhost:8080")
        return cls(_http_client(base, token, None), name=parsed.host, token=token)

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        url = self._http.base_url
        return f"{url.scheme}://{url.netloc.decode('ascii')}"

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def models(self) -> list[ServedModel]:
        """Return what the server offers. ServerError if it cannot be asked."""
        body = await self._get("/v1/models")
        entries = body.get("data")
        found = [wire.as_object(entry) for entry in entries] if isinstance(entries, list) else []
        return [_served_model(entry) for entry in found if wire.as_text(entry.get("id"))]

    async def status(self) -> Status:
        """Return the engine's state (our own server alone)."""
        return wire.parse_status(await self._get("/qlocal/status"))

    async def load(self, model: str, **wanted: Any) -> Status:
        """Ask our server to load a model in place of the present one; progress comes by `status_events`.

        wanted: fields of /qlocal/load, None for those that are left to the server."""
        return wire.parse_status(await self._post("/qlocal/load", _load_request(model, wanted)))

    async def plan(self, model: str, **wanted: Any) -> ShownPlan:
        """Return what such a load would take. ServerError says why it cannot be."""
        return wire.parse_plan(await self._post("/qlocal/plan", _load_request(model, wanted)))

    async def count(self, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None) -> TokenCount:
        """Return how many tokens a conversation has, by the model's own tokenizer (our own server alone)."""
        body = await self._post("/qlocal/count", {"messages": messages} | ({"tools": tools} if tools else {}))
        prompt_tokens, limit = wire.as_int(body.get("prompt_tokens")), wire.as_int(body.get("max_context"))
        if prompt_tokens is None or limit is None:
            raise ServerError("the server's answer to /qlocal/count has no prompt_tokens or max_context")
        return TokenCount(prompt_tokens, limit, wire.as_int(body.get("cached_tokens")))

    async def tokenize(self, messages: list[ChatMessage]) -> list[int]:
        """See `OwnServer.tokenize`."""
        body = await self._post("/qlocal/tokenize", {"messages": messages})
        return wire.parse_ids(body.get("token_ids"))

    async def score(
        self,
        prompt: list[ChatMessage] | list[int],
        answer: str | list[int],
        top: int,
        *,
        keep: bool = False,
        against: str | None = None,
    ) -> Scored:
        """See `OwnServer.score`."""
        wanted: dict[str, Any] = {"prompt_ids" if prompt and isinstance(prompt[0], int) else "messages": prompt}
        wanted |= {"answer" if isinstance(answer, str) else "answer_ids": answer, "top_logprobs": top, "keep": keep}
        if against is not None:
            wanted["against"] = against
        # A long answer takes as long to read as a long prompt.
        return wire.parse_scored(await self._post("/qlocal/score", wanted, timeout_s=None))

    async def variants(self) -> list[Variant]:
        """See `OwnServer.variants`."""
        # The vocabularies of all checkpoints are opened for it.
        return wire.parse_variants(await self._get("/qlocal/variants", timeout_s=None))

    async def status_events(self) -> AsyncGenerator[Status, None]:
        """Yield every change of the engine's state until the server goes away (then ServerError)."""
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=EVENTS_TIMEOUT_S)
        try:
            async with self._http.stream("GET", "/qlocal/events", timeout=timeout) as response:
                await _check(response)
                async for data in event_data(response.aiter_bytes()):
                    yield wire.parse_status(_loads(data))
        except httpx.HTTPError as error:
            raise _unreachable(self.name, error) from error
        raise ServerError(f"{self.name} closed the connection")

    async def answer(
        self, messages: list[ChatMessage], model: str | None, sampling: dict[str, Any] | None = None
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Yield the answer to a conversation as it is written; ends with one Done or one Failure, never raises those.

        A stream that ends without `[DONE]` is a Failure: what came before it may not be the whole answer.
        """
        request: dict[str, Any] = {
            **(sampling or {}),
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if model is not None:
            request["model"] = model
        try:
            # No limit on reading: a long prompt on a CPU takes minutes before its first token.
            timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=None)
            async with self._http.stream("POST", "/v1/chat/completions", json=request, timeout=timeout) as response:
                if response.status_code >= 400:
                    yield self._without_token(wire.parse_error(response.status_code, await _body(response)))
                    return
                async for event in _answer_events(response):
                    yield self._without_token(event) if isinstance(event, Failure) else event
        except httpx.HTTPError as error:
            yield Failure(_unreachable(self.name, error).message)

    def _without_token(self, failure: Failure) -> Failure:
        if not self._token:
            return failure
        return Failure(failure.message.replace(self._token, HIDDEN), failure.code)

    async def _get(self, path: str, timeout_s: float | None = REPLY_TIMEOUT_S) -> dict[str, Any]:
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=timeout_s)
        return await self._reply(self._http.build_request("GET", path, timeout=timeout))

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float | None = REPLY_TIMEOUT_S) -> dict[str, Any]:
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=timeout_s)
        return await self._reply(self._http.build_request("POST", path, json=body, timeout=timeout))

    async def _reply(self, request: httpx.Request) -> dict[str, Any]:
        try:
            response = await self._http.send(request)
            if response.status_code >= 400:
                failure = self._without_token(wire.parse_error(response.status_code, await _body(response)))
                raise ServerError(failure.message)
        except httpx.HTTPError as error:
            raise _unreachable(self.name, error) from error
        return wire.as_object(_loads(response.text))


def _load_request(model: str, wanted: dict[str, Any]) -> dict[str, Any]:
    return {"model": model} | {name: value for name, value in wanted.items() if value is not None}


def _http_client(base: str, token: str | None, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=REPLY_TIMEOUT_S)
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, transport=transport)


async def _answer_events(response: httpx.Response) -> AsyncIterator[AnswerEvent]:
    """Yield the events of a stream; the Done is kept back until `[DONE]` has shown that nothing is missing."""
    done: Done | None = None
    async for data in event_data(response.aiter_bytes()):
        if data == "[DONE]":
            yield done or Done("stop")
            return
        if data.startswith(OWN_COMMENT):
            if (told := wire.parse_comment(data)) is not None:
                yield told
            continue
        for event in wire.parse_chunk(data):
            if isinstance(event, Done):
                done = event
                continue
            yield event
            if isinstance(event, Failure):
                return
    yield Failure("the answer is cut off: the connection ended before the server had finished", "truncated")


async def _check(response: httpx.Response) -> None:
    if response.status_code >= 400:
        raise ServerError(wire.parse_error(response.status_code, await _body(response)).message)


async def _body(response: httpx.Response) -> str:
    await response.aread()
    return response.text


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServerError(f"the server sent something that is not JSON: {text[:80]!r}") from error


def _served_model(entry: dict[str, Any]) -> ServedModel:
    limit = wire.as_int(entry.get("max_model_len")) or wire.as_int(entry.get("max_context"))
    return ServedModel(str(entry["id"]), limit)


def _unreachable(name: str, error: httpx.HTTPError) -> ServerError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ServerError(f"{name} does not answer: {error or type(error).__name__}")
    if isinstance(error, httpx.TimeoutException):
        return ServerError(f"{name} did not answer in time")
    return ServerError(f"the connection to {name} broke: {error or type(error).__name__}")
