"""What clients may ask of a model: every field of the completion endpoints with its range."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from qlocal.errors import RequestError
from qlocal.server.chat_messages import ChatMessage
from qlocal.server.request_base import Body, Text, TokenId, TokenIds
from qlocal.server.tools import ChosenFunction, Tool, ToolChoice, Tools, offered

StopText = Annotated[str, Field(min_length=1, max_length=1024)]


class StreamOptions(Body):
    include_usage: bool = False


class NamedSchema(Body):
    """The object under `json_schema` of a response format; answers are held to it, strict or not."""

    name: str | None = Field(None, max_length=128)
    description: Text | None = None
    json_schema: dict[str, Any] | bool = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and to no other")
        return self


class Options(Body):
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
    return_token_ids: bool | None = None
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
    continue_final_message: bool | None = None
    answer_start_ids: TokenIds | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None

    @model_validator(mode="after")
    def _built(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.modalities not in (None, ["text"]):
            raise RequestError("modalities other than text are not supported", param="modalities")
        _ = self.offered_tools
        if self.continue_final_message:
            self._check_continued()
        return self

    def _check_continued(self) -> None:
        last = self.messages[-1]
        if self.answer_start_ids is not None:
            raise RequestError(
                "continue_final_message and answer_start_ids exclude each other", param="answer_start_ids"
            )
        if last.role != "assistant" or last.tool_calls:
            raise RequestError(
                "continue_final_message needs a last message of the assistant, without tool calls",
                param="continue_final_message",
            )

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model is told of."""
        return offered(self.tools or [], self.tool_choice)

    @property
    def must_call(self) -> bool:
        """Whether the answer is a tool call, whatever the model would rather say."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ChosenFunction)

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
        | TokenIds
        | Annotated[list[Text], Field(max_length=16)]
        | Annotated[list[list[TokenId]], Field(max_length=16)]
    )
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: Text | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> CompletionRequest:
        for name in ("response_format", "tools", "tool_choice"):
            if (self.model_extra or {}).get(name):
                raise RequestError(f"{name} belongs to /v1/chat/completions, not to raw texts", param=name)
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens is 0, expected at least 1 unless echo is true", param="max_tokens")
        if self.suffix:
            self._check_suffix()
        elif not all(self.prompts):
            raise RequestError("prompt is empty", param="prompt")
        return self

    def _check_suffix(self) -> None:
        if self.echo:
            raise RequestError("suffix and echo exclude each other", param="suffix")
        if not all(isinstance(prompt, str) for prompt in self.prompts):
            raise RequestError("suffix needs prompts that are texts", param="suffix")

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt; an empty one stands for an empty request."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        if ids or not self.prompt:
            return [ids]
        return [part for part in self.prompt if not isinstance(part, int)]


class EmbeddingRequest(Body):
    """POST /v1/embeddings, which is refused for every model that can be loaded here."""

    model: str | None = None
    input: Text | TokenIds | Annotated[list[Text], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
