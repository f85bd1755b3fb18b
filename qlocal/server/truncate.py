"""Leaves out the middle of a prompt that is too long, where the user wants that: the beginning says what it is, and the
end what is asked. Knows messages and their number of tokens, nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from qlocal.server.chat_messages import ChatMessage

Encode = Callable[[Sequence[ChatMessage]], Awaitable[list[int]]]
MARK = "\n\n[... {} characters left out here ...]\n\n"
ATTEMPTS = 10
"""Lengths that are tried: what is left has another number of tokens a character than the whole."""
_MARGIN = 0.98


@dataclass(frozen=True)
class Cut:
    """A prompt that fits. left_out: tokens fewer than the whole has."""

    ids: list[int]
    left_out: int = 0


async def cut_middle(messages: Sequence[ChatMessage], ids: list[int], room: int, encode: Encode) -> Cut | None:
    """Return the conversation with the middle of its longest message left out, so that it has at most `room` tokens.

    ids: of the whole. None where that is not enough: the rest alone is too long."""
    if len(ids) <= room:
        return Cut(ids)
    index = max(range(len(messages)), key=lambda i: len(messages[i].text))
    text, found = messages[index].text, ids
    kept = len(text)
    for _ in range(ATTEMPTS):
        kept = int(kept * _MARGIN * room / len(found))
        shorter = [*messages[:index], _with_text(messages[index], _without_middle(text, kept)), *messages[index + 1 :]]
        found = await encode(shorter)
        if len(found) <= room:
            return Cut(found, len(ids) - len(found))
    return None


def _without_middle(text: str, kept: int) -> str:
    """Return the first and the last half of what is kept, and between them how much is not there."""
    first = text[: kept - kept // 2]
    return first + MARK.format(f"{len(text) - kept:,}") + text[len(text) - kept // 2 :]


def _with_text(message: ChatMessage, text: str) -> ChatMessage:
    return message.model_copy(update={"content": text})
