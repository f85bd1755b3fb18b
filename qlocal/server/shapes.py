"""OpenAI's response objects as plain dictionaries, for chat and for raw completions, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import qlocal
from qlocal.clean import clean_line
from qlocal.protocol import TokenLogprobs
from qlocal.server.generation import CallDelta, Delta, Ended, Usage
from qlocal.server.text import ModelText

Json = dict[str, Any]
FINGERPRINT = f"qlocal-{qlocal.__version__}"


@dataclass(frozen=True)
class Envelope:
    """What all chunks of one answer share."""

    request_id: str
    model: ModelText
    with_logprobs: bool = False
    with_token_ids: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, kind: str, choices: list[Json], **extra: Any) -> Json:
        """Return one response or chunk around `choices`."""
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **extra,
        }

    def with_ids(self, choice: Json, token_ids: Sequence[int]) -> Json:
        """Add the ids of its tokens to a choice, where they were asked for."""
        return choice | {"token_ids": list(token_ids)} if self.with_token_ids else choice

    def token(self, token_id: int, logprob: float | None = None) -> Json:
        """Return one token: OpenAI's object, and its id. Half a character is U+FFFD as text; its bytes are whole."""
        raw = self.model.tokenizer.token_bytes(token_id)
        told = {} if logprob is None else {"logprob": _finite(logprob)}
        return {"id": token_id, "token": raw.decode("utf-8", "replace"), **told, "bytes": list(raw)}

    def scored(self, token: TokenLogprobs) -> Json:
        """Return a token with its log probability and the best ones that could have stood there, the best first."""
        best = [self.token(i, p) for i, p in zip(token.top_ids, token.top_logprobs, strict=True)]
        return {**self.token(token.token_id, token.logprob), "top_logprobs": best}


def usage(report: Usage) -> Json:
    """Return the usage object with our extra object `qlocal`."""
    return {
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "total_tokens": report.prompt_tokens + report.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": report.cached_tokens},
        "qlocal": report.speed.to_json(),
    }


class ChatShape:
    """Shapes of /v1/chat/completions."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope

    def opening(self, num_choices: int) -> list[Json]:
        """Return the first chunks: who speaks."""
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(num_choices)]

    def delta(self, delta: Delta) -> Json:
        logprobs = self._logprobs(delta.logprobs) if self.envelope.with_logprobs else None
        told: Json = {"content": delta.text} if delta.text or not delta.calls else {}
        if delta.calls:
            told["tool_calls"] = [_call_delta(call) for call in delta.calls]
        return self._chunk(delta.index, told, logprobs, token_ids=delta.token_ids)

    def ended(self, ended: Ended) -> Json:
        return self._chunk(ended.index, {}, finish_reason=ended.finish_reason)

    def usage_chunk(self, report: Usage) -> Json:
        return self.envelope.wrap("chat.completion.chunk", [], usage=usage(report))

    def whole(self, deltas: Sequence[Delta], endings: Sequence[Ended], report: Usage) -> Json:
        """Return the answer in one piece."""
        choices = [self._choice(ended, [d for d in deltas if d.index == ended.index]) for ended in _by_index(endings)]
        return self.envelope.wrap("chat.completion", choices, usage=usage(report))

    def _choice(self, ended: Ended, deltas: list[Delta]) -> Json:
        calls = _whole_calls([call for delta in deltas for call in delta.calls])
        content = "".join(delta.text for delta in deltas)
        message: Json = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        logprobs = self._logprobs(_joined(deltas)) if self.envelope.with_logprobs else None
        choice = {"index": ended.index, "message": message, "logprobs": logprobs, "finish_reason": ended.finish_reason}
        return self.envelope.with_ids(choice, [i for d in deltas for i in d.token_ids])

    def _chunk(
        self,
        index: int,
        delta: Json,
        logprobs: Json | None = None,
        finish_reason: str | None = None,
        token_ids: Sequence[int] = (),
    ) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        choice = self.envelope.with_ids(choice, token_ids)
        return self.envelope.wrap("chat.completion.chunk", [choice])

    def _logprobs(self, tokens: Iterable[TokenLogprobs]) -> Json:
        return {"content": [self.envelope.scored(token) for token in tokens], "refusal": None}


def _call_delta(call: CallDelta) -> Json:
    """Return a piece of a tool call: id, type and name come once, with the first."""
    if call.call_id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.call_id, "type": "function", "function": function}


def _whole_calls(pieces: Sequence[CallDelta]) -> list[Json]:
    """Return tool calls whose arguments are the joined pieces."""
    calls = []
    for first in (piece for piece in pieces if piece.call_id is not None):
        arguments = "".join(piece.arguments for piece in pieces if piece.index == first.index)
        function = {"name": first.name, "arguments": arguments}
        calls.append({"id": first.call_id, "type": "function", "function": function})
    return calls


class CompletionShape:
    """Shapes of /v1/completions. `text_offset` counts characters from the beginning of each choice's text."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self._offsets: dict[int, int] = {}

    def opening(self, num_choices: int) -> list[Json]:
        """Raw completions have no first chunk of their own."""
        return []

    def delta(self, delta: Delta) -> Json:
        return self._chunk(delta.index, delta.text, self._logprobs(delta.index, delta.logprobs), None, delta.token_ids)

    def ended(self, ended: Ended) -> Json:
        return self._chunk(ended.index, "", finish_reason=ended.finish_reason)

    def usage_chunk(self, report: Usage) -> Json:
        return self.envelope.wrap("text_completion", [], usage=usage(report))

    def whole(self, deltas: Sequence[Delta], endings: Sequence[Ended], report: Usage) -> Json:
        """Return the completion in one piece."""
        choices = [self._choice(ended, [d for d in deltas if d.index == ended.index]) for ended in _by_index(endings)]
        return self.envelope.wrap("text_completion", choices, usage=usage(report))

    def _choice(self, ended: Ended, deltas: list[Delta]) -> Json:
        text = "".join(d.text for d in deltas)
        logprobs = self._logprobs(ended.index, _joined(deltas))
        choice = {"index": ended.index, "text": text, "logprobs": logprobs, "finish_reason": ended.finish_reason}
        return self.envelope.with_ids(choice, [i for d in deltas for i in d.token_ids])

    def _chunk(
        self,
        index: int,
        text: str,
        logprobs: Json | None = None,
        finish_reason: str | None = None,
        token_ids: Sequence[int] = (),
    ) -> Json:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        choice = self.envelope.with_ids(choice, token_ids)
        return self.envelope.wrap("text_completion", [choice])

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprobs]) -> Json | None:
        if not self.envelope.with_logprobs:
            return None
        texts = [self._text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.setdefault(index, 0))
            self._offsets[index] += len(text)
        best = [
            {self._text(i): _finite(p) for i, p in zip(t.top_ids, t.top_logprobs, strict=True)} or None for t in tokens
        ]
        return {
            "tokens": texts,
            "token_logprobs": [_known(token) for token in tokens],
            "top_logprobs": best,
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self.envelope.model.tokenizer.token_bytes(token_id).decode("utf-8", "replace")


Shape = ChatShape | CompletionShape


def model_object(model: ModelText, max_context: int | None, created: int) -> Json:
    """Return one entry of /v1/models; both names for the context are in use among clients."""
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "qlocal",
        "context_length": max_context,
        "max_model_len": max_context,
    }


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> Json:
    """Return `{"error": {message, type, param, code}}`, the one shape of all errors.

    What it quotes of a request, a file or a library is clean: clients print it to a terminal.
    """
    named = None if param is None else clean_line(param)
    return {"error": {"message": clean_line(message), "type": kind, "param": named, "code": code}}


def _by_index(endings: Sequence[Ended]) -> list[Ended]:
    return sorted(endings, key=lambda ended: ended.index)


def _joined(deltas: Iterable[Delta]) -> list[TokenLogprobs]:
    return [token for delta in deltas for token in delta.logprobs]


def _finite(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI's own floor is -9999."""
    return max(logprob, -9999.0)


def _known(token: TokenLogprobs) -> float | None:
    """The first prompt token has no probability, since nothing stands before it; NaN stands for that."""
    return None if token.logprob != token.logprob else _finite(token.logprob)
