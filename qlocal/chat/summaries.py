"""Summaries: which messages are sent where some stand for others. No screen, no store, no network."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qlocal.chat.store.records import Message, Role

INSTRUCTION = (
    "Summarize our conversation so far, in its language. Keep names, numbers, dates, decisions, code that still "
    "matters, and what is still open. Write the summary alone: it takes the place of these messages."
)
"""What the model is asked for. Not translated: it is no sentence of the screen."""
INTRODUCTION = "Summary of our conversation so far:"
"""Stands before a summary where it is sent."""


def sent(path: Sequence[Message], without: Collection[int] = ()) -> list[Message]:
    """Return the messages of a path that are sent, in their order: a summary in the place of the first it stands for.

    A path that ends in a message that is left out was sent before that was chosen: of it nothing is left out.
    """
    is_past = bool(path) and path[-1].is_left_out
    standing = {summary_id: ids for summary_id, ids in _standing(path).items() if summary_id not in without}
    replaced = {message_id for ids in standing.values() for message_id in ids}
    summaries = {message.message_id: message for message in path if message.message_id in standing}
    first = {ids[0]: summaries[summary_id] for summary_id, ids in standing.items() if summary_id not in replaced}
    found: list[Message] = []
    for message in path:
        if message.message_id in first:
            found.append(first[message.message_id])
        is_out = message.is_left_out and not is_past
        if message.is_summary or is_out or message.message_id in replaced or message.message_id in without:
            continue
        found.append(message)
    return found


def replaced_in(path: Sequence[Message]) -> set[int]:
    """Return the messages of a path that are not sent because a summary stands for them."""
    return {message_id for ids in _standing(path).values() for message_id in ids}


def _standing(path: Sequence[Message]) -> dict[int, list[int]]:
    """Return the messages of every summary that stands for some. Only for those before it: what an import says of
    others must not take them away."""
    found: dict[int, list[int]] = {}
    before: list[int] = []
    for message in path:
        if wanted := set(message.stands_for):
            ids = [message_id for message_id in before if message_id in wanted]
            found |= {message.message_id: ids} if ids else {}
        before.append(message.message_id)
    return found


def turns_of(messages: Sequence[Message]) -> list[list[int]]:
    """Return messages as turns, a user's message and what followed it; with a summary all that it stands for."""
    turns: list[list[int]] = []
    for message in messages:
        if message.role is Role.USER or message.is_summary or not turns:
            turns.append([])
        turns[-1] += [message.message_id, *message.stands_for]
    return turns
