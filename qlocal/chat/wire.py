"""JSON of the HTTP routes into typed events. Everything here was written by a server: every field is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from qlocal.chat.events import (
    Ahead,
    AnswerEvent,
    Done,
    Failure,
    Logprobs,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from qlocal.chat.link_state import ShownPlan, Variant
from qlocal.chat.logprobs import Candidate, Scored, TokenLogprobs
from qlocal.chat.sse import OWN_COMMENT
from qlocal.errors import ServerError
from qlocal.schema import PromptProgress, QueuePlace, Status

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def as_int(value: Any) -> int | None:
    """Return an integer field, or None where it is absent or something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_float(value: Any) -> float | None:
    """Return a number as float, or None where it is absent or something else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_text(value: Any) -> str | None:
    """Return a text field, or None where it is absent or something else.

    JSON can hold halves of surrogate pairs, which neither SQLite nor a terminal can write: they become U+FFFD.
    """
    return _LONE_SURROGATE.sub("\ufffd", value) if isinstance(value, str) else None


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object, or an empty one where it is absent or something else."""
    return value if isinstance(value, dict) else {}


def parse_status(body: Any) -> Status:
    """Read the object of GET /qlocal/status and of every event of GET /qlocal/events. ServerError if it is none."""
    try:
        return Status.from_json(body)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ServerError(f"the server's status cannot be read: {error!r}") from error


def parse_error(status_code: int, body: str) -> Failure:
    """Read an error response: `{"error": {...}}`, `{"error": "..."}`, `{"detail": "..."}`, or anything else."""
    try:
        values = as_object(json.loads(body))
    except ValueError:
        values = {}
    error = values.get("error", values)
    if isinstance(error, str):
        return Failure(error)
    fields = as_object(error)
    message = as_text(fields.get("message")) or as_text(values.get("detail"))
    if message is None:
        return Failure(f"the server answered HTTP {status_code} without saying why")
    code = fields.get("code") or fields.get("type")
    return Failure(message, str(code) if code else None)


def parse_comment(comment: str) -> Ahead | None:
    """Read what our server says beside the events of a stream; None for what this version does not know."""
    try:
        values = as_object(json.loads(comment.removeprefix(OWN_COMMENT)))
    except ValueError:
        return None
    if (ahead := as_int(values.get("ahead"))) is not None:
        return QueuePlace(ahead)
    done, total = as_int(values.get("done_tokens")), as_int(values.get("prompt_tokens"))
    rate, left_s = as_float(values.get("tokens_per_s")), as_float(values.get("left_s"))
    if done is None or total is None or rate is None or left_s is None:
        return None
    return PromptProgress(done, total, rate, left_s)


def parse_chunk(data: str) -> Iterator[AnswerEvent]:
    """Read the data of one server-sent event of a chat completion (`[DONE]` excepted)."""
    try:
        chunk = json.loads(data)
    except ValueError:
        yield Failure(f"the server sent an event that is not JSON: {data[:80]!r}")
        return
    values = as_object(chunk)
    if "error" in values:
        yield parse_error(200, data)
        return
    choices = values.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        yield from _parse_choice(as_object(choice))
    if usage := as_object(values.get("usage")):
        yield parse_usage(usage, as_object(values.get("qlocal")) or as_object(usage.get("qlocal")))


def _parse_choice(choice: dict[str, Any]) -> Iterator[AnswerEvent]:
    delta = as_object(choice.get("delta"))
    if thinking := as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning")):
        yield ThinkingDelta(thinking)
    if text := as_text(delta.get("content")):
        yield TextDelta(text)
    calls = delta.get("tool_calls")
    for call in map(as_object, calls if isinstance(calls, list) else []):
        function = as_object(call.get("function"))
        index, arguments = as_int(call.get("index")), as_text(function.get("arguments"))
        yield ToolCallDelta(index or 0, arguments or "", as_text(call.get("id")), as_text(function.get("name")))
    if tokens := parse_tokens(as_object(choice.get("logprobs")).get("content")):
        yield Logprobs(tokens)
    if reason := as_text(choice.get("finish_reason")):
        yield Done(reason)


def parse_tokens(entries: Any) -> tuple[TokenLogprobs, ...]:
    """Read OpenAI's `logprobs.content`, or the `tokens` of /qlocal/score; what is no token is left out."""
    found = []
    for entry in map(as_object, entries if isinstance(entries, list) else []):
        chosen = _parse_candidate(entry)
        best = entry.get("top_logprobs")
        top = [_parse_candidate(as_object(one)) for one in best] if isinstance(best, list) else []
        if chosen is not None:
            found.append(TokenLogprobs(chosen, tuple(one for one in top if one is not None)))
    return tuple(found)


def parse_ids(values: Any) -> list[int]:
    """Read a list of token ids. ServerError if it is none."""
    ids = [as_int(value) for value in values] if isinstance(values, list) else [None]
    known = [token_id for token_id in ids if token_id is not None]
    if len(known) != len(ids):
        raise ServerError("the server sent something else than token ids")
    return known


def parse_scored(body: dict[str, Any]) -> Scored:
    """Read the answer of POST /qlocal/score. ServerError where tokens have no distance and others have one."""
    entries = [as_object(entry) for entry in body.get("tokens") or []]
    tokens = list(parse_tokens(entries))
    kl = [value for entry in entries if (value := as_float(entry.get("kl"))) is not None]
    reverse = [value for entry in entries if (value := as_float(entry.get("kl_reverse"))) is not None]
    if len(tokens) != len(entries) or len(kl) not in (0, len(tokens)) or len(kl) != len(reverse):
        raise ServerError("the server's answer to /qlocal/score cannot be read")
    return Scored(tokens, as_text(body.get("reference")), kl, reverse)


def parse_plan(body: dict[str, Any]) -> ShownPlan:
    """Read the answer of POST /qlocal/plan."""
    table, notes = (body.get(key) for key in ("table", "notes"))
    return ShownPlan(_texts(table), _texts(notes))


def _texts(values: Any) -> list[str]:
    return [text for value in values if (text := as_text(value)) is not None] if isinstance(values, list) else []


def parse_variants(body: dict[str, Any]) -> list[Variant]:
    """Read the answer of GET /qlocal/variants; what is no variant is left out."""
    found = []
    for entry in map(as_object, body.get("variants") or []):
        name, path, kind = (as_text(entry.get(key)) for key in ("name", "path", "format"))
        size = as_int(entry.get("bytes"))
        if name is not None and path is not None and kind is not None and size is not None:
            is_loaded, is_same_size = entry.get("is_loaded") is True, entry.get("is_same_size") is True
            found.append(Variant(name, path, kind, size, is_loaded, is_same_size))
    return found


def _parse_candidate(entry: dict[str, Any]) -> Candidate | None:
    logprob, text, raw = as_float(entry.get("logprob")), as_text(entry.get("token")), entry.get("bytes")
    if logprob is None or text is None:
        return None
    is_bytes = isinstance(raw, list) and all(as_int(one) is not None and 0 <= one < 256 for one in raw)
    token_bytes = bytes(raw) if is_bytes and isinstance(raw, list) else text.encode()
    return Candidate(as_int(entry.get("id")), token_bytes, min(0.0, logprob))


def parse_usage(usage: dict[str, Any], own: dict[str, Any]) -> Usage:
    """Read OpenAI's `usage` with our own extra object beside it (empty for other servers)."""
    details = as_object(usage.get("prompt_tokens_details"))
    cached = as_int(own.get("cached_tokens"))
    return Usage(
        prompt_tokens=as_int(usage.get("prompt_tokens")) or 0,
        completion_tokens=as_int(usage.get("completion_tokens")) or 0,
        cached_tokens=cached if cached is not None else as_int(details.get("cached_tokens")),
        prefill_s=as_float(own.get("prefill_s")),
        decode_s=as_float(own.get("decode_s")),
        tokens_per_s=as_float(own.get("tokens_per_s")),
        max_context=as_int(own.get("max_context")),
        drafted_tokens=as_int(own.get("drafted_tokens")),
        accepted_tokens=as_int(own.get("accepted_tokens")),
        restored_tokens=as_int(own.get("restored_tokens")),
    )
