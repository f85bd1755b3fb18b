"""Every message that a widget sends up, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message


@dataclass
class PromptSubmitted(Message):
    """The user pressed Enter on a text that is not empty."""

    text: str


@dataclass
class ConversationChosen(Message):
    """The user chose a conversation in the sidebar."""

    conversation_id: int


@dataclass
class AttachmentAdded(Message):
    """A chip was put into the prompt; `sent` is what it stands for."""

    number: int
    sent: str


@dataclass
class SuggestionKey(Message):
    """A key that belongs to the list of suggestions while that is open: up, down, tab, enter or escape."""

    key: str


@dataclass
class SuggestionTaken(Message):
    """The user took a suggestion; `text` takes the place of what was typed of it."""

    text: str


@dataclass
class LinesBelow(Message):
    """So many lines were written below what the reader sees; 0 once the end is in view."""

    count: int

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, LinesBelow)


@dataclass
class TokenReached(Message):
    """The cursor of a `TokenView` stands on this token."""

    token_idx: int

    def can_replace(self, message: Message) -> bool:
        return isinstance(message, TokenReached)
