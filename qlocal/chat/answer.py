"""Receive one answer and keep it: every piece is in the store within half a second of its arrival."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlocal.chat.events import AnswerEvent, Done, Failure, Logprobs, TextDelta, ToolRound, Usage
from qlocal.chat.logprobs import TokenLogprobs, pack
from qlocal.chat.store.records import MessageState
from qlocal.chat.store.threaded import Store
from qlocal.chat.tools.base import Round
from qlocal.errors import QLocalError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SAVE_S = 0.5


@dataclass(frozen=True)
class Begun:
    """The beginning of an answer that the model goes on with: its text, and its tokens where they are known."""

    text: str
    tokens: tuple[TokenLogprobs, ...] = ()


class Answer:
    """An answer while it is written: its text, its speed, and its row in the store. about: what is known of it from the
    start, kept with it."""

    def __init__(
        self, store: Store, message_id: int, begun: Begun | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        self.message_id = message_id
        self.failure: Failure | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self._store = store
        self._about = dict(about or {})
        self._parts: list[str] = [begun.text] if begun else []
        self._tokens: list[TokenLogprobs] = list(begun.tokens) if begun else []
        self._rounds: list[Round] = []
        self._num_deltas = 0
        self._begun_at = time.monotonic()
        self._first_at: float | None = None
        self._last_at = 0.0
        self._save_timer: asyncio.TimerHandle | None = None

    @property
    def text(self) -> str:
        """What has been written so far."""
        return "".join(self._parts)

    @property
    def tokens_per_s(self) -> float | None:
        """The server's own figure; before that, pieces a second as they arrive."""
        if self.usage is not None and self.usage.tokens_per_s is not None:
            return self.usage.tokens_per_s
        if self._first_at is None or self._last_at <= self._first_at:
            return None
        tokens = self.usage.completion_tokens if self.usage is not None else self._num_deltas
        return (tokens - 1) / (self._last_at - self._first_at)

    async def receive(self, events: AsyncGenerator[AnswerEvent, None], on_event: Callable[[AnswerEvent], None]) -> None:
        """Read the answer to its end and hand every event on. Cancelled, it is kept as stopped; what is raised for the
        user on the way is its failure."""
        try:
            async with aclosing(events):
                async for event in events:
                    self._take(event)
                    on_event(event)
        except asyncio.CancelledError:
            self._finish(MessageState.STOPPED)
            raise
        except QLocalError as error:
            self.failure = Failure(str(error))
        self._finish(MessageState.FAILED if self.failure is not None else MessageState.COMPLETE)

    def _take(self, event: AnswerEvent) -> None:
        match event:
            case TextDelta(text):
                self._count()
                self._parts.append(text)
                self._save_soon()
            case ToolRound(one):
                self._rounds.append(one)
                self._keep_rounds()
            case Logprobs(tokens):
                self._tokens += tokens
            case Usage():
                self.usage = event
            case Done(reason):
                self.finish_reason = reason
            case Failure():
                self.failure = event

    def _count(self) -> None:
        self._num_deltas += 1
        self._last_at = time.monotonic()
        if self._first_at is None:
            self._first_at = self._last_at

    def _save_soon(self) -> None:
        if self._save_timer is None:
            self._save_timer = asyncio.get_running_loop().call_later(SAVE_S, self._save)

    def _save(self) -> None:
        self._save_timer = None
        message_id, text = self.message_id, self.text
        self._store.submit(lambda history: history.save_partial(message_id, text))

    def _keep_rounds(self) -> None:
        """What a tool did is kept at once: it may have changed something."""
        message_id, text, meta = self.message_id, self.text, self._meta()
        self._store.submit(lambda history: history.save_partial(message_id, text, meta))

    def _finish(self, state: MessageState) -> None:
        """Queue the last word; the store does it before anything that is asked of it later."""
        if self._save_timer is not None:
            self._save_timer.cancel()
        message_id, text, meta = self.message_id, self.text, self._meta()
        self._store.submit(lambda history: history.finish_answer(message_id, text, state, meta))
        if tokens := tuple(self._tokens):
            # Packed in the store's thread: a long answer takes it a tenth of a second.
            self._store.submit(lambda history: history.save_logprobs(message_id, pack(tokens)))

    def _meta(self) -> dict[str, Any]:
        usage = self.usage
        meta = {
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "tokens_per_s": self.tokens_per_s,
            "first_s": None if self._first_at is None else round(self._first_at - self._begun_at, 3),
            "prefill_s": usage.prefill_s if usage else None,
            "restored_tokens": usage.restored_tokens if usage else None,
            "drafted_tokens": usage.drafted_tokens if usage else None,
            "accepted_tokens": usage.accepted_tokens if usage else None,
            "finish_reason": self.finish_reason,
            "tools": [one.to_json() for one in self._rounds] or None,
            "error": self.failure.message if self.failure else None,
        }
        return self._about | {name: value for name, value in meta.items() if value is not None}
