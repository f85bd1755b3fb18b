"""Rows of SQLite as the history's values. What was damaged on the disk costs a value, not the conversation."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from qlocal.chat.store.records import Conversation, Hit, Message, MessageState, Role

SNIPPET_BEFORE, SNIPPET_CHARS = 24, 160

_USER_CHARS = len(Role.USER.value)
_STATES = {state.value: state for state in MessageState}


def conversation(row: sqlite3.Row) -> Conversation:
    """Return a conversation."""
    values = dict(row)
    tags = _json(values.pop("tags"), [])
    values["tags"], values["sampling"] = tuple(tags), _json(values["sampling"], {})
    return Conversation(conversation_id=values.pop("id"), **values)


def message(row: sqlite3.Row) -> Message:
    """Return a message, of a query that counts its siblings."""
    return Message(
        message_id=row["id"],
        parent_id=row["parent_id"],
        role=_role(row["role"]),
        content=row["content"],
        state=_STATES.get(row["state"], MessageState.STOPPED),
        model=row["model"],
        created_at=row["created_at"],
        meta=_json(row["meta"], {}),
        siblings=row["siblings"],
        sibling_idx=row["sibling_idx"],
    )


def hit(row: sqlite3.Row, words: Sequence[str]) -> Hit:
    """Return a hit with the text around the first word of it that was looked for."""
    content = row["content"]
    found = [at for word in words if (at := content.lower().find(word.lower())) >= 0]
    start = max(0, min(found, default=0) - SNIPPET_BEFORE)
    snippet = " ".join(content[start : start + SNIPPET_CHARS].split())
    return Hit(
        message_id=row["id"],
        conversation_id=row["conversation_id"],
        title=row["title"],
        role=_role(row["role"]),
        created_at=row["created_at"],
        snippet=("…" if start else "") + snippet,
    )


def _role(text: str) -> Role:
    """Return a role; a flipped bit leaves the length of its word."""
    return Role.USER if len(text) <= _USER_CHARS else Role.ASSISTANT


def _json(text: str, empty: Any) -> Any:
    if len(text) == 2:  # nothing in it, as in nearly all of the 10,000 messages of a long conversation
        return empty
    try:
        found = json.loads(text)
    except ValueError:
        return empty
    return found if isinstance(found, type(empty)) else empty
