"""The rows of the history as values. A conversation is a tree of messages; its leaf says which branch is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

MAX_TITLE_CHARS = 80


class Role(str, Enum):
    """Who speaks, in OpenAI's words."""

    USER = "user"
    ASSISTANT = "assistant"


class MessageState(str, Enum):
    """How far a message is; all but `streaming` are final."""

    STREAMING = "streaming"
    COMPLETE = "complete"
    STOPPED = "stopped"
    """The reader stopped it, or the chat ended while it was written."""
    FAILED = "failed"


@dataclass(frozen=True)
class Message:
    """One message. `siblings` counts the branches at this point, `sibling_idx` says which one this is.

    meta: what is known of an answer: prompt_tokens, completion_tokens, cached_tokens, tokens_per_s, error.
    """

    message_id: int
    parent_id: int | None
    role: Role
    content: str
    state: MessageState
    model: str | None
    created_at: float
    meta: dict[str, Any] = field(default_factory=dict)
    siblings: int = 1
    sibling_idx: int = 0

    @property
    def is_left_out(self) -> bool:
        """Whether the user chose that it is not sent any more."""
        return self.meta.get("left_out") is True

    @property
    def is_summary(self) -> bool:
        """Whether a model wrote it to be sent in the place of other messages."""
        return "summary_of" in self.meta

    @property
    def stands_for(self) -> tuple[int, ...]:
        """The messages in whose place a summary is sent; empty for all others, and as long as it is not whole."""
        ids = self.meta.get("summary_of")
        if not isinstance(ids, list) or self.state is not MessageState.COMPLETE or self.is_left_out:
            return ()
        return tuple(one for one in ids if isinstance(one, int))


@dataclass(frozen=True)
class Conversation:
    """A conversation without its messages. Times are seconds since 1970; `leaf_id` None when it is empty. sampling:
    fields of a request by name."""

    conversation_id: int
    title: str
    model: str | None
    system: str | None
    created_at: float
    updated_at: float
    leaf_id: int | None = None
    num_messages: int = 0
    pinned_at: float | None = None
    tags: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """A message that a search has found. snippet: of its text, around what was looked for."""

    message_id: int
    conversation_id: int
    title: str
    role: Role
    created_at: float
    snippet: str


def title_of(text: str) -> str:
    """Return the first line of a text that says anything, shortened to 80 characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "Untitled")
    return line if len(line) <= MAX_TITLE_CHARS else line[: MAX_TITLE_CHARS - 1] + "…"
