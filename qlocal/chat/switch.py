"""Models here and endpoints elsewhere behind one link: what is chosen says who answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlocal.chat.endpoints import Endpoint
from qlocal.chat.events import TokenCount
from qlocal.chat.link import EndpointLink
from qlocal.chat.link_state import AnswerStream, Choice, Link, LinkState, OwnServer, Phase, ShownPlan
from qlocal.config import ChatOptions
from qlocal.errors import QLocalError

AT = " @ "


class SwitchLink:
    """A link at home and others by name. Nothing is sent to an endpoint before it is chosen; the link at home is opened
    when it is chosen first, and goes on in the background from then on."""

    def __init__(self, home: Link, endpoints: Iterable[Endpoint], first: tuple[Endpoint, str] | None = None) -> None:
        """first: what to begin with in the place of home, an endpoint and its model."""
        self._home = home
        self._offers = {_label(one, model): (one, model) for one in endpoints for model in one.models}
        self._away: EndpointLink | None = None
        self._states: asyncio.Queue[LinkState] = asyncio.Queue()
        self._home_state = LinkState()
        self._home_task: asyncio.Task[None] | None = None
        self._away_task: asyncio.Task[None] | None = None
        self._first: str | None = None
        if first is not None:
            self._first = _label(*first)
            self._offers[self._first] = first

    async def states(self) -> AsyncGenerator[LinkState, None]:
        """See `Link.states`."""
        try:
            if self._first is not None:
                yield LinkState(Phase.STARTING, self._first)
                try:
                    await self._leave_for(self._first)
                except QLocalError as error:  # another model can be chosen all the same
                    yield LinkState(Phase.FAILED, self._first, error=str(error))
            else:
                self._open_home()
            while True:
                yield await self._states.get()
        finally:
            for task in (self._home_task, self._away_task):
                if task is not None:
                    task.cancel()

    async def choices(self) -> list[Choice]:
        """Return what home offers, with every endpoint's models behind what is there."""
        away = [Choice(label, f"→ {endpoint.url}") for label, (endpoint, _model) in self._offers.items()]
        try:
            home = await self._home.choices()
        except QLocalError:
            home = []  # a server of somebody's that does not answer: the others can be chosen all the same
        return [one for one in home if one.is_here] + away + [one for one in home if not one.is_here]

    async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
        """See `Link.select`."""
        if model in self._offers:
            await self._leave_for(model)
            return
        await self._come_home()
        await self._home.select(model, max_context, kv)
        self._open_home()

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        """See `Link.plan`."""
        return None if model in self._offers else await self._home.plan(model, max_context, kv)

    async def count(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> TokenCount | None:
        """See `Link.count`."""
        return await self._active.count(messages, tools)

    def answer(self, messages: list[dict[str, Any]], options: dict[str, Any] | None = None) -> AnswerStream:
        """See `Link.answer`."""
        return self._active.answer(messages, options)

    @property
    def own(self) -> OwnServer | None:
        """See `Link.own`."""
        return self._active.own

    @property
    def log_path(self) -> Path | None:
        """See `Link.log_path`."""
        return self._active.log_path

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        await self._close_away()
        await self._home.aclose()

    @property
    def _active(self) -> Link:
        return self._home if self._away is None else self._away

    async def _leave_for(self, label: str) -> None:
        endpoint, model = self._offers[label]
        options = ChatOptions(model=model, endpoint=endpoint.url, token=endpoint.key())
        link = EndpointLink(options)
        await self._close_away()
        self._away = link
        self._away_task = asyncio.create_task(self._follow_away(self._away, label))

    async def _come_home(self) -> None:
        if self._away is not None:
            await self._close_away()
            self._states.put_nowait(self._home_state)

    async def _close_away(self) -> None:
        if self._away_task is not None:
            self._away_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._away_task
        if self._away is not None:
            away, self._away, self._away_task = self._away, None, None
            await away.aclose()

    def _open_home(self) -> None:
        if self._home_task is None:
            self._home_task = asyncio.create_task(self._follow_home())

    async def _follow_home(self) -> None:
        async with aclosing(self._home.states()) as states:
            async for state in states:
                self._home_state = state
                if self._away is None:
                    self._states.put_nowait(state)

    async def _follow_away(self, link: EndpointLink, label: str) -> None:
        async with aclosing(link.states()) as states:
            async for state in states:
                self._states.put_nowait(replace(state, model=label))


def _label(endpoint: Endpoint, model: str) -> str:
    return f"{model}{AT}{endpoint.name}"
