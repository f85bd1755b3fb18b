"""The two links there are: to our own server, started if need be, and to any OpenAI-compatible one by URL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlocal import catalog, launch
from qlocal.chat.client import ChatClient, ChatMessage
from qlocal.chat.endpoints import read_endpoints
from qlocal.chat.events import Failure, TokenCount
from qlocal.chat.link_state import AnswerStream, Choice, Link, LinkState, OwnServer, Phase, ShownPlan
from qlocal.chat.logprobs import TOP
from qlocal.config import ChatOptions, EngineOptions, chat_table
from qlocal.errors import QLocalError, ServerError
from qlocal.schema import EngineState, Status

RETRY_S = 1.0
MAX_RESTARTS = 3
"""A server that dies so often within a minute is not started again: it would only die once more."""
RESTART_WINDOW_S = 60.0


def open_link(options: ChatOptions) -> Link:
    """Return the link that the options ask for. UsageError if the endpoint is neither a name nor a URL."""
    endpoints = read_endpoints(chat_table())
    if not endpoints:
        return LocalLink(options) if options.endpoint is None else EndpointLink(options)
    from qlocal.chat.switch import SwitchLink  # which knows these links

    if options.endpoint in endpoints:
        named = endpoints[options.endpoint]
        home = LocalLink(replace(options, model=None, endpoint=None))
        return SwitchLink(home, endpoints.values(), (named, options.model or named.models[0]))
    return SwitchLink(LocalLink(options) if options.endpoint is None else EndpointLink(options), endpoints.values())


class LocalLink:
    """Our own server over its private socket; it is found or started, and started again when it goes away."""

    def __init__(self, options: ChatOptions) -> None:
        self._model = options.model
        self._engine = EngineOptions(
            devices=options.devices,
            max_context=options.context,
            head=options.head,
            split=options.split,
            kv=options.kv,
            draft=options.draft,
        )
        self._client: ChatClient | None = None
        self._is_wanted = asyncio.Event()
        self._losses: list[float] = []

    async def states(self) -> AsyncGenerator[LinkState, None]:
        """See `Link.states`."""
        error: str | None = None
        while True:
            yield LinkState(Phase.STARTING, self._name, error=error)
            try:
                # Blocks for as long as the server needs to answer, so it has a thread of its own.
                said: list[str] = []
                address = await asyncio.to_thread(launch.ensure_server, self._model, self._engine, said.append)
            except QLocalError as refused:
                yield LinkState(Phase.FAILED, self._name, error=str(refused))
                await self._until_selected()
                error = None
                continue
            await self.aclose()
            self._client = ChatClient.at(address)
            for change in said:
                yield LinkState(Phase.LOADING, self._name, stage=change)
            try:
                async for status in self._client.status_events():
                    yield _state_of(status)
            except ServerError as lost:
                error = f"The server went away ({lost.message})"
            yield LinkState(Phase.LOST, self._name, error=error)
            await self._before_restart()

    async def choices(self) -> list[Choice]:
        """Return the model folder's checkpoints, then what the catalogue could fetch."""
        return await asyncio.to_thread(_local_choices)

    async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
        """See `Link.select`."""
        self._model = _absolute(model)
        self._engine = self._engine_with(max_context, kv)
        self._is_wanted.set()
        if self._client is not None:
            await self._client.load(self._model, **self._engine.named())

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        """See `Link.plan`."""
        wanted = self._engine_with(max_context, kv).named()
        return None if self._client is None else await self._client.plan(_absolute(model), **wanted)

    def _engine_with(self, max_context: int | None, kv: str | None) -> EngineOptions:
        """Return how models are loaded, with these in the place of what was asked for so far."""
        engine = self._engine
        return replace(
            engine,
            max_context=engine.max_context if max_context is None else max_context,
            kv=engine.kv if kv is None else kv,
            draft=None if engine.draft is None else _absolute(engine.draft),
        )

    async def count(self, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None) -> TokenCount | None:
        """See `Link.count`."""
        return None if self._client is None else await self._client.count(messages, tools)

    def answer(self, messages: list[ChatMessage], options: dict[str, Any] | None = None) -> AnswerStream:
        """See `Link.answer`."""
        wanted = {"logprobs": True, "top_logprobs": TOP, **(options or {})}
        return _no_server() if self._client is None else self._client.answer(messages, None, wanted)

    @property
    def own(self) -> OwnServer | None:
        """See `Link.own`."""
        return self._client

    @property
    def log_path(self) -> Path | None:
        """See `Link.log_path`."""
        return launch.runtime_folder() / "server.log"

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    @property
    def _name(self) -> str | None:
        """The model as the server calls it: a whole path would leave no room for the rest of the status line."""
        return None if self._model is None else catalog.display_name(Path(self._model))

    async def _before_restart(self) -> None:
        """Wait a moment; after too many losses, until the user chooses a model again."""
        now = time.monotonic()
        self._losses = [at for at in self._losses if now - at < RESTART_WINDOW_S] + [now]
        if len(self._losses) > MAX_RESTARTS:
            await self.aclose()
            await self._until_selected()
            self._losses.clear()
        else:
            await asyncio.sleep(RETRY_S)

    async def _until_selected(self) -> None:
        self._is_wanted.clear()
        await self._is_wanted.wait()


class EndpointLink:
    """Somebody's server. It has no states to follow: it is asked for its models once, and again on a new choice."""

    def __init__(self, options: ChatOptions) -> None:
        assert options.endpoint is not None, "an endpoint link is made from an endpoint"
        self._client = ChatClient.to_url(options.endpoint, options.token)
        self._model = options.model
        self._changed = asyncio.Event()

    async def states(self) -> AsyncGenerator[LinkState, None]:
        """See `Link.states`."""
        yield LinkState(Phase.STARTING, self._model)
        while True:
            self._changed.clear()
            yield await self._state()
            await self._changed.wait()

    async def choices(self) -> list[Choice]:
        """Return what the server says it has."""
        return [Choice(model.name) for model in await self._client.models()]

    async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
        """See `Link.select`."""
        self._model = model
        self._changed.set()

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        """None: what it takes there is not told."""
        return None

    async def count(self, messages: list[ChatMessage], tools: list[dict[str, Any]] | None = None) -> TokenCount | None:
        """None: the API has no way to ask."""
        return None

    def answer(self, messages: list[ChatMessage], options: dict[str, Any] | None = None) -> AnswerStream:
        """See `Link.answer`."""
        return self._client.answer(messages, self._model, options)

    @property
    def own(self) -> OwnServer | None:
        """None: it is somebody else's."""
        return None

    @property
    def log_path(self) -> Path | None:
        """See `Link.log_path`."""
        return None

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        await self._client.aclose()

    async def _state(self) -> LinkState:
        origin = self._client.origin
        try:
            served = await self._client.models()
        except ServerError as error:
            if self._model is None:
                return LinkState(Phase.FAILED, error=f"{error}. Give the model's name if the server has no list")
            # A server without /v1/models can answer all the same; whether it does is seen with the first question.
            return LinkState(Phase.READY, self._model, error=str(error), endpoint=origin)
        if self._model is None and len(served) == 1:
            self._model = served[0].name
        if self._model is None:
            return LinkState(Phase.CHOOSING, endpoint=origin)
        limit = next((model.max_context for model in served if model.name == self._model), None)
        return LinkState(Phase.READY, self._model, max_context=limit, endpoint=origin)


def _state_of(status: Status) -> LinkState:
    phase = {
        EngineState.EMPTY: Phase.CHOOSING,
        EngineState.LOADING: Phase.LOADING,
        EngineState.READY: Phase.READY,
        EngineState.FAILED: Phase.FAILED,
    }[status.state]
    progress = status.progress if phase is Phase.LOADING else None
    return LinkState(
        phase=phase,
        model=status.model,
        stage=progress.stage if progress else None,
        fraction=min(1.0, progress.done / progress.total) if progress and progress.total > 0 else None,
        path=status.path,
        status=status,
        max_context=status.max_context,
        error=status.error,
        memory=status.memory if status.state in (EngineState.LOADING, EngineState.READY) else None,
    )


def _absolute(model: str) -> str:
    """Return a path that means the same in the server's folder; names are left as they are."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def _local_choices() -> list[Choice]:
    installed = catalog.installed()
    here = [Choice(name, str(path)) for name, path in installed.items()]
    missing = [entry for name, entry in catalog.entries().items() if name not in installed]
    return here + [Choice(entry.name, f"qlocal pull {entry.name}", is_here=False) for entry in missing]


async def _no_server() -> AnswerStream:
    yield Failure("there is no server to ask")
