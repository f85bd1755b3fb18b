"""What clients may ask for: every field with its range. Known fields that are not built are refused by name,
unknown ones are ignored with a log line, since clients learn new ones every year.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qlocal.errors import RequestError

log = logging.getLogger(__name__)

Text = Annotated[str, Field(max_length=8 << 20)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]

UNSUPPORTED = {
    "tools": "tool calls",
    "functions": "function calls",
    "function_call": "function calls",
    "audio": "audio output",
    "prediction": "predicted output",
    "web_search_options": "web search",
    "chat_template": "templates in a request",
    "chat_template_kwargs": "template arguments in a request",
    "suffix": "text after the completion",
    "best_of": "choosing the best of several completions",
    "prompt_embeds": "prompts as embeddings",
}
"""Known fields that are refused unless empty, with what they would mean."""

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "reasoning_effort",
        "parallel_tool_calls",
        "service_tier",
        "verbosity",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)
"""Accepted without effect: they describe the caller, or a wish that this server fulfils anyway."""


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StreamOptions(_Body):
    include_usage: bool = False


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]


class TextPart(_Body):
    """One part of a message's content; only text can be read here."""

    type: str
    text: Text | None = None


class ChatMessage(_Body):
    """One message; content None is allowed beside tool calls of an earlier answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        if isinstance(self.content, list):
            for part in self.content:
                if part.type != "text" or part.text is None:
                    raise ValueError(f"content parts of type '{part.type}' are not supported, only text")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the message as templates expect it: text joined, `developer` as `system`."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text or "" for part in content)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        calls = [_with_arguments(call) for call in self.tool_calls or []]
        extra = {"tool_calls": calls, "tool_call_id": self.tool_call_id, "name": self.name}
        return message | {name: value for name, value in extra.items() if value}


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object: templates write them as JSON once more."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call  # what the model wrote was no JSON; the template shows it as it was
    return {**call, "function": {**function, "arguments": arguments}}


class Options(_Body):
    """Fields that both completion endpoints share."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    n: int | None = Field(None, ge=1, le=8)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=4096)

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key, bias in (value or {}).items():
            if not (key.isascii() and key.isdecimal() and len(key) < 11):
                raise ValueError(f"'{key[:40]}' is no token id")
            if not -100 <= bias <= 100:
                raise ValueError(f"the bias of token {key} is {bias:g}, expected -100 to 100")
        return value

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def biases(self) -> dict[int, float]:
        return {int(key): bias for key, bias in (self.logit_bias or {}).items()}

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Options):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=65_536)
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    truncate: Literal["middle"] | None = None
    tool_choice: str | dict[str, Any] | None = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _built(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.response_format is not None and self.response_format.type != "text":
            raise RequestError(
                f"response_format '{self.response_format.type}' is not supported, only text", param="response_format"
            )
        if self.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice is not supported: there are no tool calls", param="tool_choice")
        if self.modalities not in (None, ["text"]):
            raise RequestError("modalities other than text are not supported", param="modalities")
        return self

    @property
    def limit(self) -> int | None:
        given = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(given) if given else None

    @property
    def num_logprobs(self) -> int | None:
        """As Sampling.top_logprobs: None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Options):
    """POST /v1/completions. `prompt` is a text, token ids, or a list of either."""

    prompt: (
        Text
        | Annotated[list[TokenId], Field(max_length=1 << 24)]
        | Annotated[list[Text], Field(max_length=16)]
        | Annotated[list[list[TokenId]], Field(max_length=16)]
    )
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens is 0, expected at least 1 unless echo is true", param="max_tokens")
        if not all(self.prompts):
            raise RequestError("prompt is empty", param="prompt")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt; an empty one stands for an empty request."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        if ids or not self.prompt:
            return [ids]
        return [part for part in self.prompt if not isinstance(part, int)]


class LoadRequest(_Body):
    """POST /qlocal/load."""

    model: str = Field(min_length=1, max_length=4096)
    max_context: int | None = Field(None, ge=1, lt=1 << 31)
    devices: list[str] | None = Field(None, min_length=1, max_length=16)
    head: Literal["stored", "q8_0", "q6_k"] | None = None
    kv: str | None = None
    draft: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    offload: Literal["auto", "none", "layers", "experts"] | None = None
    split: Literal["auto", "layer", "tensor"] | None = None


class CountRequest(_Body):
    """POST /qlocal/count."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=65_536)


BodyT = TypeVar("BodyT", bound=_Body)


def validate(kind: type[BodyT], raw: Mapping[str, Any]) -> BodyT:
    """Return `raw` as a checked request; RequestError (400) names the first field that is wrong."""
    _refuse_unsupported(raw)
    try:
        body = kind.model_validate(raw)
    except ValidationError as error:
        raise _first_problem(error) from error
    if unknown := sorted((body.model_extra or {}).keys() - IGNORED - UNSUPPORTED.keys()):
        log.warning("ignored unknown request fields: %s", ", ".join(repr(name[:64]) for name in unknown[:16]))
    return body


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    for name, meaning in UNSUPPORTED.items():
        harmless: tuple[Any, ...] = (None, "", [], {}) if name != "best_of" else (None, raw.get("n") or 1)
        if name in raw and raw[name] not in harmless:
            raise RequestError(f"{name} is not supported: {meaning} cannot be asked for here", param=name)


def _first_problem(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    path = [part for part in problem["loc"] if not _is_variant(part)]
    param = ".".join(str(part) for part in path)
    reason = problem["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if param == "messages" and problem["type"] == "too_short":
        return RequestError("messages is empty, expected at least one message", param="messages")
    if problem["type"] == "missing":
        return RequestError(f"{param} is missing", param=param)
    value = repr(problem["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    return RequestError(f"{param} is {shown}: {reason}" if param else reason, param=param or None)


def _is_variant(part: int | str) -> bool:
    """Whether pydantic means a member of a union (`list[constrained-str]`) and not a field."""
    return isinstance(part, str) and (part in ("str", "constrained-str") or "[" in part)
