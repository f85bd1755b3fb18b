"""What the screen knows of the server behind it, and what it asks of it. No HTTP here, so that opening is cheap."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from qlocal.chat.events import AnswerEvent, TokenCount
from qlocal.chat.logprobs import Scored
from qlocal.schema import Status


class Phase(str, Enum):
    """How far the way to an answer is; the value is the word in the status line."""

    STARTING = "starting the server"
    CHOOSING = "no model chosen"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    LOST = "server gone"


@dataclass(frozen=True)
class LinkState:
    """The server and its model. `error` says why nothing can be asked, or what went wrong before."""

    phase: Phase = Phase.STARTING
    model: str | None = None
    stage: str | None = None
    fraction: float | None = None
    """Of loading, 0 to 1."""
    path: str | None = None
    """Where the model lies, where that is known."""
    max_context: int | None = None
    error: str | None = None
    status: Status | None = None
    """All that our own server told, None of others."""
    memory: str | None = None
    """What is planned of it and what is in use."""
    endpoint: str | None = None
    """Where conversations are sent to, None for our own server."""


@dataclass(frozen=True)
class Choice:
    """A line of the model chooser; `is_here` False is shown, but cannot be taken."""

    name: str
    detail: str = ""
    is_here: bool = True
    path: str | None = None
    """What it is selected by, where that is not its name."""

    @property
    def target(self) -> str:
        """What `Link.select` takes for it."""
        return self.path or self.name


@dataclass(frozen=True)
class Variant:
    """A checkpoint that speaks of the tokens of the model that is loaded. num_bytes: of its weights."""

    name: str
    path: str
    format: str
    num_bytes: int
    is_loaded: bool
    is_same_size: bool


@dataclass(frozen=True)
class ShownPlan:
    """What loading would take: a table, a line a device under a line of headings, and sentences beside it."""

    table: list[str]
    notes: list[str]


class OwnServer(Protocol):
    """What our own server can do beside OpenAI's API. QLocalError."""

    async def tokenize(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation, ready for its answer."""
        ...

    async def score(
        self,
        prompt: list[dict[str, Any]] | list[int],
        answer: str | list[int],
        top: int,
        *,
        keep: bool = False,
        against: str | None = None,
    ) -> Scored:
        """Return what the model gives every token of an answer behind a conversation or its ids, with the `top` best.

        keep: its distributions stay as a reference; against: such a reference of another model."""
        ...

    async def variants(self) -> list[Variant]:
        """Return the checkpoints at hand that have the tokens of the model that is loaded, that one included."""
        ...


class Link(Protocol):
    """A server: our own, or somebody's. States come from `states`; the rest may be called once one is `READY`."""

    def states(self) -> AsyncGenerator[LinkState, None]:
        """Connect and yield every change of state, for ever; a server that goes away is started again."""
        ...

    async def choices(self) -> list[Choice]:
        """Return the models that can be chosen. QLocalError."""
        ...

    async def select(self, model: str, max_context: int | None = None, kv: str | None = None) -> None:
        """Use another model; `states` tells how that goes. QLocalError if it is refused at once.

        max_context, kv: in the place of those that were asked for so far."""
        ...

    async def plan(self, model: str, max_context: int | None = None, kv: str | None = None) -> ShownPlan | None:
        """Return what selecting a model would take in place of what is loaded; None where the server does not tell.
        QLocalError says why it cannot be loaded."""
        ...

    async def count(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> TokenCount | None:
        """Return the size of a conversation, with the tools that are offered in it; None where the server has no way to
        tell. QLocalError."""
        ...

    def answer(self, messages: list[dict[str, Any]], options: dict[str, Any] | None = None) -> AnswerStream:
        """Return the events of an answer; cancelling their reader stops the server's work."""
        ...

    @property
    def own(self) -> OwnServer | None:
        """What our own server can do beside answering; None for others, and while there is none."""
        ...

    @property
    def log_path(self) -> Path | None:
        """Where our own server writes its log, None for other servers."""
        ...

    async def aclose(self) -> None:
        """Close all connections; the server goes on."""
        ...


AnswerStream = AsyncGenerator[AnswerEvent, None]
