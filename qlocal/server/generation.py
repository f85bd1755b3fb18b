"""From a checked job to text: submits its sequences, decodes their tokens, holds stop strings back.

Streams and whole answers are made of the same deltas, so they cannot differ.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from qlocal.errors import EngineError, RequestError
from qlocal.protocol import Finished, Queued, Reading, Sampling, Started, Submit, TokenLogprobs, Tokens
from qlocal.schema import PromptProgress, QueuePlace, SpeedReport
from qlocal.server.engine_client import EngineClient
from qlocal.server.stop_strings import StopFilter
from qlocal.server.text import ModelText
from qlocal.tokenizer.tool_calls import CallBegun, Content, ToolFormat, ToolParser


@dataclass(frozen=True)
class OfferedTools:
    """The functions that an answer may call. many: more than one of them."""

    tool_format: ToolFormat
    names: Sequence[str]
    many: bool = True


@dataclass(frozen=True)
class Job:
    """One request, ready for the engine. Choice `i * n + k` is the k-th answer to prompt i.

    max_tokens: one limit a prompt, already within the context; 0 asks for the prompt's log probabilities alone.
    left_out: tokens that were taken out of a prompt that was too long. num_begun: tokens at the end of each prompt that
    are the beginning of the answer, whose text the client has. stop_ids: what ends answers beside the model's own.
    grammar: what answers follow. tools: what they may call.
    """

    request_id: str
    prompts: Sequence[list[int]]
    max_tokens: Sequence[int]
    sampling: Sampling
    n: int = 1
    stops: Sequence[str] = ()
    echo: bool = False
    left_out: int = 0
    num_begun: int = 0
    stop_ids: Sequence[int] = ()
    grammar: str | None = None
    tools: OfferedTools | None = None

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n


@dataclass(frozen=True)
class CallDelta:
    """More of one tool call: its first has id and name, the later ones have text of its arguments."""

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Delta:
    """New text of one choice, its tokens, and their log probabilities (prompt tokens first, when echoed)."""

    index: int
    text: str
    token_ids: list[int] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """One choice is complete. finish_reason: stop, length or tool_calls."""

    index: int
    finish_reason: str


@dataclass(frozen=True)
class Usage:
    """The whole job is complete."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    speed: SpeedReport


Part = Delta | Ended | Usage | QueuePlace | PromptProgress


async def run(job: Job, engine: EngineClient, model: ModelText, max_context: int) -> AsyncGenerator[Part, None]:
    """Yield the job's place while it waits, how far long prompts are read, deltas of all choices as they come, an Ended
    for each, and the Usage last.

    Close the iterator to cancel. EngineError when the engine is lost or refuses.
    """
    choices = {f"{job.request_id}-{index}": _Choice(index, job, model) for index in range(job.num_choices)}
    submits = [choice.submit(request_id, model) for request_id, choice in choices.items()]
    queue = _Queue(job.num_choices)
    vocabulary = model.vocabulary if job.grammar is not None else None
    async with contextlib.aclosing(engine.generate(submits, vocabulary)) as messages:
        async for message in messages:
            if isinstance(message, Queued):
                if (place := queue.place(message)) is not None:
                    yield place
                continue
            if isinstance(message, Reading):
                yield _progress(message)
                continue
            assert isinstance(message, (Started, Tokens, Finished)), "generate yields nothing else"
            choice = choices[message.request_id]
            if isinstance(message, Started):
                choice.started = message
                deltas = choice.echo(message)
            elif isinstance(message, Tokens):
                deltas = choice.tokens(message)
                if choice.is_stopped:
                    engine.cancel(message.request_id)
            else:
                deltas = choice.finish(message)
            for delta in deltas:
                yield delta
            if isinstance(message, Finished):
                yield Ended(choice.index, choice.finish_reason)
    yield _usage(job, list(choices.values()), max_context)


class _Queue:
    """Where a job stands that has not begun: the first of its choices counts, and the others are nobody before it."""

    def __init__(self, num_choices: int) -> None:
        self._num_choices = num_choices
        self._ahead: dict[str, int] = {}
        self._told: QueuePlace | None = None

    def place(self, message: Queued) -> QueuePlace | None:
        """Take the place of one choice; return the job's where it is a new one."""
        self._ahead[message.request_id] = message.ahead
        place = QueuePlace(min(self._ahead.values()))
        # A choice of which nothing was heard is at work already, or heard of in this moment.
        if len(self._ahead) < self._num_choices or place == self._told:
            return None
        self._told = place
        return place


class _Choice:
    """One sequence on its way from tokens to text."""

    def __init__(self, index: int, job: Job, model: ModelText) -> None:
        self.index = index
        self._job = job
        self._prompt_ids = job.prompts[index // job.n]
        self._max_tokens = job.max_tokens[index // job.n]
        self._model = model
        self._stop_ids = frozenset(model.stop_ids) | frozenset(job.stop_ids)
        self._decoder = model.tokenizer.stream_decoder()
        self._filter = StopFilter(job.stops)
        for token_id in self._prompt_ids[len(self._prompt_ids) - job.num_begun :]:
            self._decoder.push(token_id)
        self._tools = None if job.tools is None else ToolParser(job.tools.tool_format, job.tools.names)
        self._has_calls = False
        self._waiting: list[_Waiting] = []
        self._decoded_chars = 0
        self._shown_chars = 0
        self.is_stopped = False
        self.finish_reason = "length"
        self.started: Started | None = None
        self.completion_tokens = 0
        self.decode_s = 0.0
        self.drafted_tokens = 0
        self.accepted_tokens = 0

    def submit(self, request_id: str, model: ModelText) -> Submit:
        sampling = self._job.sampling
        if sampling.seed is not None:
            # The same seed for every choice would give the same answer n times.
            sampling = replace(sampling, seed=(sampling.seed + self.index % self._job.n) % (1 << 63))
        return Submit(
            grammar=self._job.grammar,
            num_begun=self._job.num_begun if self._job.grammar is not None else 0,
            request_id=request_id,
            input_ids=self._prompt_ids,
            max_tokens=max(self._max_tokens, 1),
            stop_ids=sorted(self._stop_ids),
            sampling=sampling,
            num_tokens=model.tokenizer.num_tokens,
            scored_from=1 if self._job.echo and sampling.top_logprobs is not None else None,
        )

    def echo(self, started: Started) -> list[Delta]:
        """Return the prompt as text, where it was asked for; it passes no stop string filter."""
        if not self._job.echo:
            return []
        decoder = self._model.tokenizer.stream_decoder()
        text = "".join(decoder.push(token_id) for token_id in self._prompt_ids) + decoder.finish()
        logprobs = started.prompt_logprobs
        if logprobs and len(logprobs) == len(self._prompt_ids) - 1:  # nothing stands before the first token
            logprobs = [TokenLogprobs(self._prompt_ids[0], float("nan")), *logprobs]
        return [Delta(self.index, text, self._prompt_ids, logprobs=logprobs)]

    def tokens(self, message: Tokens) -> list[Delta]:
        """Take new tokens; return what they allow to show."""
        shown = ""
        logprobs: Sequence[TokenLogprobs | None] = message.logprobs or [None] * len(message.token_ids)
        for token_id, logprob in zip(message.token_ids, logprobs, strict=True):
            if self.is_stopped or self._max_tokens == 0:
                break
            self.completion_tokens += 1
            if token_id in self._stop_ids:
                continue
            self._waiting.append(_Waiting(self._decoded_chars, token_id, logprob))
            text = self._decoder.push(token_id)
            self._decoded_chars += len(text)
            shown += self._filter.feed(text)
            self.is_stopped = self._filter.stopped
        return self._delta(shown)

    def finish(self, message: Finished) -> list[Delta]:
        """Take the sequence's end; return the text that was held back."""
        self.decode_s = message.decode_s
        self.drafted_tokens, self.accepted_tokens = message.drafted_tokens, message.accepted_tokens
        if message.reason == "refused":
            raise RequestError(message.message or "the engine refused the request", param="response_format")
        if message.reason == "error" or (message.reason == "cancelled" and not self.is_stopped):
            raise EngineError(message.message or "the engine cancelled the answer")
        self.finish_reason = "length" if self._max_tokens == 0 else message.reason
        shown = ""
        if not self.is_stopped:
            shown = self._filter.feed(self._decoder.finish()) + self._filter.finish()
        if self.is_stopped or self._filter.stopped:
            self.finish_reason = "stop"
        deltas = self._delta(shown, is_last=True)
        if self._has_calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return deltas

    def _delta(self, shown: str, *, is_last: bool = False) -> list[Delta]:
        self._shown_chars += len(shown)
        # What follows a stop string belongs to nobody.
        is_all = is_last and not self.is_stopped
        ready = [token for token in self._waiting if token.start < self._shown_chars or is_all]
        self._waiting = self._waiting[len(ready) :]
        text, calls = self._sorted(shown, is_last)
        if not text and not calls and not ready:
            return []
        logprobs = [token.logprobs for token in ready if token.logprobs is not None]
        return [Delta(self.index, text, [token.token_id for token in ready], calls, logprobs)]

    def _sorted(self, shown: str, is_last: bool) -> tuple[str, list[CallDelta]]:
        """Part the text of an answer into content and tool calls."""
        if self._tools is None or self._job.tools is None:
            return shown, []
        if not self._job.tools.many and self._tools.num_complete:
            return "", []
        text, calls = "", list[CallDelta]()
        for part in self._tools.feed(shown) + (self._tools.finish() if is_last else []):
            if isinstance(part, Content):
                text += part.text
            elif isinstance(part, CallBegun):
                self._has_calls = True
                calls.append(CallDelta(part.index, call_id=f"call_{uuid.uuid4().hex[:24]}", name=part.name))
            elif calls and calls[-1].index == part.index:
                # Clients take two pieces of one call in one chunk for two calls.
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.text)
            else:
                calls.append(CallDelta(part.index, part.text))
        if not self._job.tools.many and self._tools.num_complete:
            self.is_stopped = True
            calls = [call for call in calls if call.index == 0]
        return text, calls


@dataclass(frozen=True)
class _Waiting:
    """A token that is told together with its text. start: the character where that begins."""

    start: int
    token_id: int
    logprobs: TokenLogprobs | None


def _progress(message: Reading) -> PromptProgress:
    computed = message.done_tokens - message.cached_tokens
    rate = computed / message.elapsed_s if message.elapsed_s > 0 else 0.0
    left_s = (message.prompt_tokens - message.done_tokens) / rate if rate > 0 else 0.0
    return PromptProgress(message.done_tokens, message.prompt_tokens, round(rate, 1), round(left_s, 1))


def _usage(job: Job, choices: Sequence[_Choice], max_context: int) -> Usage:
    started = [choice.started for choice in choices if choice.started is not None]
    completion_tokens = sum(choice.completion_tokens for choice in choices)
    cached_tokens = sum(s.cached_tokens for s in started[:: job.n])
    decode_s = max((choice.decode_s for choice in choices), default=0.0)
    speed = SpeedReport(
        cached_tokens=cached_tokens,
        prefill_s=round(sum(s.prefill_s for s in started), 6),
        decode_s=round(decode_s, 6),
        tokens_per_s=round(completion_tokens / decode_s, 3) if decode_s > 0 else 0.0,
        max_context=max_context,
        left_out_tokens=job.left_out,
        restored_tokens=sum(s.restored_tokens for s in started[:: job.n]),
        drafted_tokens=sum(choice.drafted_tokens for choice in choices),
        accepted_tokens=sum(choice.accepted_tokens for choice in choices),
    )
    return Usage(sum(map(len, job.prompts)), completion_tokens, cached_tokens, speed)
