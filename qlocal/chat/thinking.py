"""What a model thinks before it answers: told apart from the answer, and kept out of what is sent back.

A thought is kept in the message, between the marks that models write themselves, whether it came so or as
`reasoning_content`: one form in the history, in search and in exports.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from qlocal.chat.events import AnswerEvent, TextDelta, ThinkingDelta

OPENING, CLOSING = "<think>", "</think>"
# Some templates open the thought in the prompt, so that the answer only ever closes it: on a line of its own.
_LATE_CLOSING = re.compile(r"^[ \t]*</think>[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Parts:
    """An answer in two parts. `thought` None: it has none; `is_thinking`: the thought has not ended."""

    thought: str | None
    answer: str
    is_thinking: bool = False


def parts_of(text: str) -> Parts:
    """Part an answer, complete or not, into thought and answer."""
    begun = text.lstrip()
    if begun.startswith(OPENING):
        thought, end, answer = begun[len(OPENING) :].partition(CLOSING)
        return Parts(thought.strip("\n"), answer.lstrip("\n"), is_thinking=not end)
    if (late := _LATE_CLOSING.search(text)) is not None:
        return Parts(text[: late.start()].strip("\n"), text[late.end() :].lstrip("\n"))
    return Parts(None, text)


def may_open(text: str) -> bool:
    """Whether a text that streams could still begin with a thought."""
    begun = text.lstrip()
    return len(begun) < len(OPENING) and OPENING.startswith(begun)


def answer_of(text: str) -> str:
    """Return an answer without its thought."""
    return parts_of(text).answer


async def as_text(events: AsyncGenerator[AnswerEvent, None]) -> AsyncGenerator[AnswerEvent, None]:
    """Hand on the events of an answer with thoughts as text between their marks."""
    is_thinking = False
    async with aclosing(events):
        async for event in events:
            if isinstance(event, ThinkingDelta):
                yield TextDelta(event.text if is_thinking else f"{OPENING}\n{event.text}")
                is_thinking = True
                continue
            if is_thinking and isinstance(event, TextDelta):
                is_thinking = False
                yield TextDelta(f"\n{CLOSING}\n\n")
            yield event
