"""The server's side of the engine: starts and supervises the rank, hands out sequences by request id.

Knows token ids and nothing about text or HTTP. Everything runs on the server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from qlocal.config import FROM_CONTEXT, NO_DRAFT
from qlocal.errors import EngineError, SessionError
from qlocal.protocol import (
    Cancel,
    Failed,
    FindSession,
    Finished,
    Load,
    Message,
    Ping,
    Pong,
    Progress,
    Queued,
    Reading,
    Ready,
    SaveSession,
    Session,
    Started,
    Submit,
    Tokens,
    Vocabulary,
)
from qlocal.schema import EngineState, LoadProgress
from qlocal.server.model_files import ModelFiles
from qlocal.server.rank_process import RANK_COMMAND, RankProcess
from qlocal.server.status import StatusBoard

log = logging.getLogger(__name__)


@dataclass
class RestartLimits:
    """At most `count` restarts within `window_s` seconds: an engine that keeps dying is not worth the heat."""

    count: int = 3
    window_s: float = 600.0
    _times: deque[float] = field(default_factory=deque)

    def allow(self) -> bool:
        """Count one restart and say whether it is still within the limits."""
        now = time.monotonic()
        while self._times and now - self._times[0] > self.window_s:
            self._times.popleft()
        self._times.append(now)
        return len(self._times) <= self.count


class EngineClient:
    """Owns at most one rank. `load` replaces it; `generate` runs sequences on it."""

    def __init__(
        self,
        board: StatusBoard,
        *,
        command: Sequence[str] = RANK_COMMAND,
        limits: RestartLimits | None = None,
        ping_s: float = 10.0,
        stall_s: float = 30.0,
        reading_stall_s: float = 120.0,
    ) -> None:
        """stall_s: after so long without a sign of life the rank is ended and started again. reading_stall_s: while a
        prompt is read, since a step of 512 tokens of a large model may take a minute on a CPU, and says nothing."""
        self._board = board
        self._command = command
        self._limits = limits or RestartLimits()
        self._ping_s = ping_s
        self._stall_s, self._reading_stall_s = stall_s, reading_stall_s
        self._unread: set[str] = set()
        self._supervisor: asyncio.Task[None] | None = None
        self._rank: RankProcess | None = None
        self._ready = False
        self._knows_vocabulary = False
        self._cause: EngineError | None = None
        self._queues: dict[str, asyncio.Queue[Message | EngineError]] = {}
        self._nonces = itertools.count()
        self._asked: dict[int, asyncio.Future[Pong | Session]] = {}
        self._last_sign = time.monotonic()
        self.last_token_s = float("-inf")
        """Monotonic time of the last token of any sequence."""

    @property
    def running(self) -> int:
        """Sequences whose end has not been seen yet."""
        return len(self._queues)

    @property
    def pid(self) -> int | None:
        return self._rank.pid if self._rank else None

    async def load(self, load: Load) -> None:
        """Stop the rank that runs and start loading; progress and outcome appear on the status board."""
        await self.stop()
        self._supervisor = asyncio.create_task(self._supervise(load), name="engine supervisor")

    async def stop(self) -> None:
        """End the rank; sequences that run get an EngineError."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        self._fail_sequences(EngineError("the engine was stopped"))

    async def generate(
        self, submits: Sequence[Submit], vocabulary: Vocabulary | None = None
    ) -> AsyncGenerator[Message, None]:
        """Run sequences and yield Queued, Reading, Started, Tokens and Finished of all of them until each has finished.

        vocabulary: needed by those with a grammar; a rank is told it once.
        Close the iterator (`contextlib.aclosing`) to cancel what still runs. EngineError when the engine is lost.
        """
        rank = self._ready_rank()
        queue: asyncio.Queue[Message | EngineError] = asyncio.Queue()
        open_ids = {submit.request_id for submit in submits}
        self._queues.update(dict.fromkeys(open_ids, queue))
        self._count()
        try:
            if vocabulary is not None and not self._knows_vocabulary:
                rank.send(vocabulary)
                self._knows_vocabulary = True
            self._unread |= open_ids
            for submit in submits:
                rank.send(submit)
            while open_ids:
                message = await queue.get()
                if isinstance(message, EngineError):
                    raise message
                yield message
                if isinstance(message, Finished):
                    open_ids.discard(message.request_id)
        finally:
            for request_id in open_ids:
                if self._queues.pop(request_id, None) is not None:
                    rank.send(Cancel(request_id))
            self._count()

    async def usage(self, timeout_s: float, input_ids: list[int] | None = None) -> Pong | None:
        """Ask the rank what is in use, and how much of a prompt is in its cache; None where it does not say so in
        time."""
        try:
            answer = await self._ask(Ping(next(self._nonces), input_ids), timeout_s)
        except TimeoutError:
            return None
        assert isinstance(answer, Pong), "the rank answers a Ping so"
        return answer

    async def save_session(self, name: str, model: str, input_ids: list[int]) -> int:
        """Keep a prompt that has been computed on disk under a name; return how many of its tokens are, which are those
        of its whole blocks. SessionError when that cannot be."""
        while True:
            answer = await self._session(SaveSession(next(self._nonces), name, model, input_ids))
            if answer.saved_tokens == answer.total_tokens:
                return answer.total_tokens

    async def find_session(self, name: str) -> list[int]:
        """Return the tokens of a session. SessionError where it is not there, or another's."""
        return (await self._session(FindSession(next(self._nonces), name))).token_ids

    async def _session(self, message: SaveSession | FindSession) -> Session:
        try:
            answer = await self._ask(message, self._reading_stall_s)
        except TimeoutError:
            raise EngineError(f"the engine gave no answer for {self._reading_stall_s:g} s") from None
        assert isinstance(answer, Session), "the rank answers so"
        if answer.error is not None:
            raise SessionError(answer.error, hint=answer.hint)
        return answer

    async def _ask(self, message: Ping | SaveSession | FindSession, timeout_s: float) -> Pong | Session:
        """Return the rank's answer; TimeoutError where it does not come, EngineError when the rank ends."""
        rank = self._ready_rank()
        waiting = self._asked[message.nonce] = asyncio.get_running_loop().create_future()
        try:
            rank.send(message)
            return await asyncio.wait_for(waiting, timeout_s)
        finally:
            del self._asked[message.nonce]

    def cancel(self, request_id: str) -> None:
        """Ask the rank to end one sequence; its Finished still arrives."""
        if self._rank is not None and request_id in self._queues:
            self._rank.send(Cancel(request_id))

    def _ready_rank(self) -> RankProcess:
        if self._rank is None or not self._ready:
            raise EngineError("no model is ready", hint="Wait until it is loaded, or load one.")
        return self._rank

    async def _supervise(self, load: Load) -> None:
        while True:
            was_ready, cause = await self._live(load)
            self._fail_sequences(cause)
            # Other nodes end with the engine that they are a part of: there is nothing to start again with.
            if not was_ready or load.nodes is not None or not self._limits.allow():
                log.error("the engine is given up: %s", cause)
                self._board.update(state=EngineState.FAILED, error=str(cause), progress=None)
                return
            log.warning("the engine is started again: %s", cause)
            self._board.update(
                state=EngineState.LOADING, error=str(cause), progress=LoadProgress("starting the engine again")
            )

    async def _live(self, load: Load) -> tuple[bool, EngineError]:
        """Run one rank to its end. Return whether it had been ready, and why it ended."""
        self._cause, self._ready, self._knows_vocabulary, ending = None, False, False, ""
        files = ModelFiles([load.path, *([load.draft] if load.draft not in (FROM_CONTEXT, NO_DRAFT) else [])])
        try:
            rank = await RankProcess.start(self._command)
        except EngineError as error:
            return False, error
        self._rank, self._last_sign = rank, time.monotonic()
        watchdog = asyncio.create_task(self._watch(rank), name="engine watchdog")
        try:
            rank.send(load)
            async for message in rank.messages():
                self._handle(message)
        except EngineError as error:
            self._cause = error
        except Exception as error:  # a mistake of ours must not leave everyone waiting for an engine that is gone
            log.exception("the engine's messages could not be handled")
            self._cause = EngineError(f"an internal error of the server: {error!r}")
        finally:
            was_ready, self._ready, self._rank = self._ready, False, None
            watchdog.cancel()
            ending = await rank.end()
        if rank.exit_code == -signal.SIGBUS and (changed := files.changed()) is not None:
            # What a rank has mapped ends it where it is cut: whatever it said before, this is the reason.
            hint = "Put the whole file there and load the model again."
            self._cause = EngineError(f"{changed}; the engine was ended by SIGBUS", hint=hint)
        return was_ready, self._cause or EngineError(ending)

    async def _watch(self, rank: RankProcess) -> None:
        while True:
            await asyncio.sleep(self._ping_s)
            if not self._ready:
                self._last_sign = time.monotonic()
                continue
            patience_s = self._reading_stall_s if self._unread else self._stall_s
            if time.monotonic() - self._last_sign > patience_s:
                self._cause = EngineError(f"the engine gave no sign of life for {patience_s:g} s")
                rank.kill()
                return
            rank.send(Ping(next(self._nonces)))

    def _handle(self, message: Message) -> None:
        self._last_sign = time.monotonic()
        match message:
            case Progress():
                self._board.update(progress=LoadProgress(message.stage, message.done, message.total, message.layers))
            case Ready():
                self._ready = True
                self._board.update(
                    state=EngineState.READY,
                    error=None,
                    progress=None,
                    max_context=message.max_context,
                    plan=message.plan,
                    used=message.used,
                    held_head=message.held_head,
                )
                if len(message.devices) > 1:
                    log.info("%s split over %s", message.plan.get("split"), ", ".join(message.devices))
                if message.held_head is not None:
                    log.info("%s", message.held_head.sentence)
            case Failed():
                self._cause = EngineError(message.message, hint=message.hint)
            case Queued() | Reading() | Started() | Tokens() | Finished():
                self._deliver(message)
            case Pong() | Session():
                waiting = self._asked.get(message.nonce)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case _:
                raise EngineError(f"the engine sent a {type(message).__name__}, which it must not")

    def _deliver(self, message: Queued | Reading | Started | Tokens | Finished) -> None:
        if isinstance(message, Tokens):
            self.last_token_s = time.monotonic()
        finished = isinstance(message, Finished)
        if finished or isinstance(message, Started):
            self._unread.discard(message.request_id)
        queue = self._queues.pop(message.request_id, None) if finished else self._queues.get(message.request_id)
        if queue is not None:  # absent after a cancellation: its last messages are of no interest
            queue.put_nowait(message)

    def _count(self) -> None:
        """Tell how many sequences there are."""
        self._board.update(in_flight=len(self._queues))

    def _fail_sequences(self, cause: EngineError) -> None:
        for queue in set(self._queues.values()):
            queue.put_nowait(cause)
        self._queues.clear()
        self._unread.clear()
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(cause)
