"""What our own routes take, beside OpenAI's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qlocal.cache.saved_session import NAME_PATTERN
from qlocal.errors import RequestError
from qlocal.server.chat_messages import ChatMessage
from qlocal.server.references import ID_PATTERN
from qlocal.server.request_base import Body, Text, TokenIds
from qlocal.server.tools import Tools

Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=65_536)]


class LoadRequest(Body):
    """POST /qlocal/load."""

    model: str = Field(min_length=1, max_length=4096)
    max_context: int | None = Field(None, ge=1, lt=1 << 31)
    devices: list[str] | None = Field(None, min_length=1, max_length=16)
    head: Literal["stored", "q8_0", "q6_k"] | None = None
    kv: str | None = None
    draft: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    offload: Literal["auto", "none", "layers", "experts"] | None = None
    split: Literal["auto", "layer", "tensor"] | None = None


class CountRequest(Body):
    """POST /qlocal/count. tools: as of a chat completion."""

    messages: Messages
    tools: Tools | None = None


class TokenizeRequest(Body):
    """POST /qlocal/tokenize: a text, or a conversation with the beginning of its answer.

    control: control tokens written in `text` count as such, and the token that begins every text stands in front.
    """

    text: Text | None = None
    control: bool = False
    messages: Messages | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        _exactly_one(self, "text", "messages")
        return self


class ScoreRequest(Body):
    """POST /qlocal/score: how likely an answer is behind a prompt, token by token.

    keep: the distributions are kept as a reference, whose name is told; against: such a name: each token is told how
    far this model is from it.
    """

    model: str | None = None
    messages: Messages | None = None
    prompt_ids: TokenIds | None = None
    answer: Annotated[Text, Field(min_length=1)] | None = None
    answer_ids: TokenIds | None = None
    top_logprobs: int = Field(0, ge=0, le=20)
    keep: bool = False
    against: str | None = Field(None, pattern=ID_PATTERN)

    @model_validator(mode="after")
    def _one_of_each(self) -> ScoreRequest:
        _exactly_one(self, "messages", "prompt_ids")
        _exactly_one(self, "answer", "answer_ids")
        return self


class SaveRequest(Body):
    """POST /qlocal/sessions: keep what a prompt was computed to, under a name."""

    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    messages: Messages | None = None
    tools: Tools | None = None
    prompt_ids: TokenIds | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> SaveRequest:
        _exactly_one(self, "messages", "prompt_ids")
        return self


def _exactly_one(body: Body, first: str, second: str) -> None:
    if (getattr(body, first) is None) == (getattr(body, second) is None):
        raise RequestError(f"either {first} or {second} must be given, and not both", param=first)
