"""What a server tells the chat about an answer, as typed values; the engine's state is `schema.Status`.

Nothing here knows HTTP or the screen.
"""

from __future__ import annotations

from dataclasses import dataclass

from qlocal.chat.logprobs import TokenLogprobs
from qlocal.chat.tools.base import Round
from qlocal.schema import PromptProgress, QueuePlace


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class ThinkingDelta:
    """More text of what a model thinks before it answers; it is not part of the answer."""

    text: str


@dataclass(frozen=True)
class Logprobs:
    """What the model gave the tokens of the text that comes with it, or came before."""

    tokens: tuple[TokenLogprobs, ...]


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of the index-th tool call of an answer: its name comes once, its arguments in pieces of JSON."""

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class ToolRound:
    """Tools were called in the middle of the answer, and it goes on behind their results."""

    round: Round


@dataclass(frozen=True)
class Usage:
    """Counts and times of one answer; what a server does not tell is None."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    tokens_per_s: float | None = None
    max_context: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    restored_tokens: int | None = None

    @property
    def acceptance(self) -> float | None:
        """The share of guessed tokens that were right, None where none were guessed."""
        if not self.drafted_tokens or self.accepted_tokens is None:
            return None
        return self.accepted_tokens / self.drafted_tokens


@dataclass(frozen=True)
class Done:
    """The answer is complete. `finish_reason`: stop, length, or what the server says."""

    finish_reason: str


@dataclass(frozen=True)
class Failure:
    """The answer ends here with an error; text that came before it stays. `code` is the server's own word."""

    message: str
    code: str | None = None


@dataclass(frozen=True)
class TokenCount:
    """The size of a conversation as the model reads it, and the most it may have. cached_tokens: how many of its
    tokens need not be read again; None where that is not told."""

    prompt_tokens: int
    max_context: int
    cached_tokens: int | None = None


Ahead = QueuePlace | PromptProgress
"""What is said of an answer before its first token."""
AnswerEvent = TextDelta | ThinkingDelta | Logprobs | ToolCallDelta | ToolRound | Ahead | Usage | Done | Failure
