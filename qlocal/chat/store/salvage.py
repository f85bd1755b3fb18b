"""What can be read of a damaged history, row by row from its pages, and a new history made of it.

Which table a row is of is told by its shape: the page that would say it may be the one that is gone.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlocal.chat.store.pages import Pages, Record, Value
from qlocal.chat.store.records import MessageState, Role, title_of

_FIRST_TIME = 1e8
"""Seconds since 1970 are above, ids below: what entries of indexes have in their first column."""
_ROLES, _STATES = [one.value for one in Role], [one.value for one in MessageState]
_Row = dict[str, Value]


@dataclass(frozen=True)
class Salvage:
    """What became of a damaged history. kept: the file as it was; it is not touched again."""

    kept: Path
    num_conversations: int
    num_messages: int
    missing: Mapping[int | None, int]
    """Messages that are known to have been there, by conversation; None: of one that is not known."""
    num_cut: int
    """Messages whose end is missing."""
    num_untitled: int
    """Conversations of which only messages were found; their titles are the first of those."""

    @property
    def num_missing(self) -> int:
        return sum(self.missing.values())


@dataclass
class Found:
    """Rows by their ids."""

    conversations: dict[int, _Row] = field(default_factory=dict)
    messages: dict[int, _Row] = field(default_factory=dict)
    logprobs: dict[int, bytes] = field(default_factory=dict)
    drafts: dict[int, tuple[str, float]] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    untitled: set[int] = field(default_factory=set)
    """Conversations that only messages name."""
    known: dict[int, int | None] = field(default_factory=dict)
    """Messages that something names, and the conversation they are of."""


def read_rows(main: bytes, wal: bytes) -> Found:
    """Return every row that can be told from the bytes of a file and its journal."""
    pages, found = Pages(main, wal), Found()
    for record in pages.table_rows():
        _take(record, found)
    for record in pages.index_rows():
        match record.values:
            case (int() | None as first, int(rowid)) if rowid > 0 and (first or 0) < _FIRST_TIME:
                found.known.setdefault(rowid, None)
    for message_id, row in found.messages.items():
        found.known[message_id] = _id(row["conversation_id"])
        if (parent_id := _id(row["parent_id"])) is not None and parent_id < message_id:
            found.known[parent_id] = _id(row["conversation_id"])
    for conversation_id, row in found.conversations.items():
        if (leaf_id := _id(row["leaf_id"])) is not None and found.known.get(leaf_id) is None:
            found.known[leaf_id] = conversation_id
    return found


def write_rows(found: Found, database: sqlite3.Connection) -> None:
    """Put rows into an empty history under their ids. A message whose parent is missing comes behind the newest one
    before it; one whose conversation is missing makes one."""
    for message_id, row in sorted(found.messages.items()):
        conversation_id = _id(row["conversation_id"])
        assert conversation_id is not None, "a message's shape has one"
        if conversation_id not in found.conversations:
            found.untitled.add(conversation_id)
            found.conversations[conversation_id] = _made_up(conversation_id, row)
        row["parent_id"] = _parent_of(message_id, row, found)
    newest = {_id(row["conversation_id"]): message_id for message_id, row in sorted(found.messages.items())}
    for row in found.conversations.values():
        _insert(database, "conversation", row | {"leaf_id": None})
    for _, row in sorted(found.messages.items()):
        _insert(database, "message", row)
    for conversation_id, row in found.conversations.items():
        leaf_id = _id(row["leaf_id"])
        if leaf_id is None or found.messages.get(leaf_id, {}).get("conversation_id") != conversation_id:
            leaf_id = newest.get(conversation_id)
        database.execute("UPDATE conversation SET leaf_id = ? WHERE id = ?", (leaf_id, conversation_id))
    for message_id, packed in found.logprobs.items():
        if message_id in found.messages:
            _insert(database, "logprobs", {"message_id": message_id, "packed": packed})
    for conversation_id, (content, saved_at) in found.drafts.items():
        row = {"conversation_id": conversation_id, "content": content, "saved_at": saved_at}
        _insert(database, "draft", row)


def salvage_of(found: Found, kept: Path) -> Salvage:
    """Return what to tell of rows that were found and written."""
    missing: dict[int | None, int] = {}
    for message_id, conversation_id in found.known.items():
        if message_id not in found.messages:
            missing[conversation_id] = missing.get(conversation_id, 0) + 1
    num_cut = len(found.cut & found.messages.keys())
    num_untitled = len(found.untitled)
    return Salvage(kept, len(found.conversations), len(found.messages), missing, num_cut, num_untitled)


def _take(record: Record, found: Found) -> None:
    """Put a row where its shape says that it belongs; pieces of the search's indexes belong nowhere."""
    row_id = record.rowid
    if row_id is None or row_id < 0:
        return
    match record.values:
        case (None, int(of), int() | None as parent, str(role), str(content), *rest) if (
            role in _ROLES and of > 0 and row_id > 0
        ):
            row = _message(row_id, of, parent, role, content, rest)
            is_cut = record.is_cut or len(rest) < 5
            if row is not None and (row_id not in found.messages or row_id in found.cut):
                found.messages[row_id] = row
                (found.cut.add if is_cut else found.cut.discard)(row_id)
        case (None, str(title), str() | None, str() | None, int() | float(), int() | float(), int() | None, *_) if (
            not record.is_cut and len(record.values) in (7, 10) and row_id > 0
        ):
            found.conversations[row_id] = _conversation(row_id, title, record.values)
        case (None, str(content), int() | float() as saved_at) if not record.is_cut:
            found.drafts[row_id] = content, float(saved_at)
        case (None, bytes(packed)) if not record.is_cut and _is_packed(packed):
            found.logprobs[row_id] = packed


def _message(message_id: int, of: int, parent: int | None, role: str, content: str, rest: list[Value]) -> _Row | None:
    """Return a message; where its end is missing, with what is true of any. None if it is no message."""
    state, _, model, at, meta = [*rest, *[None] * (5 - len(rest))][:5]
    is_plausible = (
        len(rest) <= 5
        and (state in _STATES or len(rest) < 2)
        and isinstance(model, str | None)
        and isinstance(at, int | float | None)
        and isinstance(meta, str | None)
    )
    if not is_plausible:
        return None
    # Nobody goes on writing what was salvaged.
    final = state if state in _STATES and state != MessageState.STREAMING.value else MessageState.STOPPED.value
    return {
        "id": message_id, "conversation_id": of, "parent_id": parent, "role": role, "content": content,
        "state": final, "writer_pid": None, "model": model, "created_at": float(at or 0),
        "meta": meta if _is_json(meta, dict) else "{}",
    }  # fmt: skip


def _conversation(conversation_id: int, title: str, values: tuple[Value, ...]) -> _Row:
    _, _, model, system, created_at, updated_at, leaf_id, *rest = values
    pinned_at, tags, sampling = rest or (None, "[]", "{}")
    assert isinstance(created_at, int | float) and isinstance(updated_at, int | float), "its shape was looked at"
    return {
        "id": conversation_id, "title": title, "model": model, "system": system, "created_at": float(created_at),
        "updated_at": float(updated_at), "leaf_id": leaf_id,
        "pinned_at": float(pinned_at) if isinstance(pinned_at, int | float) else None,
        "tags": tags if _is_json(tags, list) else "[]", "sampling": sampling if _is_json(sampling, dict) else "{}",
    }  # fmt: skip


def _made_up(conversation_id: int, first: _Row) -> _Row:
    title, at = title_of(str(first["content"])), first["created_at"]
    values: tuple[Value, ...] = (None, title, None, None, at, at, None)
    return _conversation(conversation_id, title, values)


def _parent_of(message_id: int, row: _Row, found: Found) -> int | None:
    parent_id = _id(row["parent_id"])
    if parent_id is None or _is_of(parent_id, row["conversation_id"], message_id, found):
        return parent_id
    before = [one for one in found.messages if _is_of(one, row["conversation_id"], min(parent_id, message_id), found)]
    return max(before, default=None)


def _is_of(message_id: int, conversation_id: Value, before: int, found: Found) -> bool:
    row = found.messages.get(message_id)
    return row is not None and row["conversation_id"] == conversation_id and message_id < before


def _id(value: Value) -> int | None:
    return value if isinstance(value, int) else None


def _is_json(text: Value, kind: type) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), kind)
    except ValueError:
        return False


def _is_packed(data: bytes) -> bool:
    """Whether these are token probabilities: they carry a checksum, and nothing else in a history is packed."""
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True


def _insert(database: sqlite3.Connection, table: str, row: Mapping[str, Value]) -> None:
    marks = ", ".join("?" for _ in row)
    database.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))
