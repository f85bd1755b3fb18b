"""Conversations from files: our own JSON, ChatGPT's conversations.json, and oterm's database.

Every field is checked: the files may be anybody's."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.chat.exchange.export import FORMAT, VERSION
from qlocal.chat.store.records import Conversation, Message, MessageState, Role, title_of
from qlocal.errors import FormatError

MAX_BYTES = 1 << 30
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class Imported:
    """A conversation as `History.add_conversation` takes it. messages: parents before their children."""

    conversation: Conversation
    messages: list[Message]


def read(path: Path) -> list[Imported]:
    """Return the conversations of a file. FormatError names the file, and what of it is not as expected."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path.name}: has {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read")
        with path.open("rb") as file:
            is_database = file.read(len(_SQLITE)) == _SQLITE
        if is_database:
            return list(_oterm(path))
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path.name}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path.name}: is neither JSON nor a database: {error}") from error
    try:
        if isinstance(whole, dict) and whole.get("format") == FORMAT:
            return _own(whole)
        if isinstance(whole, list) and all(isinstance(one, dict) and "mapping" in one for one in whole):
            return [found for one in whole if (found := _chatgpt(one)) is not None]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path.name}: a conversation in it is damaged: {error!r}") from error
    raise FormatError(
        f"{path.name}: holds no conversations that can be read",
        hint="qlocal's own JSON, ChatGPT's conversations.json and oterm's store.db can.",
    )


def _own(whole: dict[str, Any]) -> list[Imported]:
    if whole["version"] != VERSION:
        raise ValueError(f"version {whole['version']!r}, expected {VERSION}")
    return [_own_conversation(one) for one in whole["conversations"]]


def _own_conversation(one: dict[str, Any]) -> Imported:
    messages = [
        Message(
            int(message["id"]),
            None if message["parent"] is None else int(message["parent"]),
            Role(message["role"]),
            _text(message["content"]),
            _ended(MessageState(message["state"])),
            _optional(message["model"]),
            float(message["created_at"]),
            dict(message["meta"]),
        )
        for message in one["messages"]
    ]
    known: set[int | None] = {None}
    for message in messages:
        if message.parent_id not in known or message.message_id in known:
            raise ValueError(f"message {message.message_id} is not behind its parent")
        known.add(message.message_id)
    conversation = Conversation(
        0,
        _text(one["title"]),
        _optional(one["model"]),
        _optional(one["system"]),
        float(one["created_at"]),
        float(one["updated_at"]),
        one["leaf"] if one["leaf"] in known else None,
        tags=tuple(_text(tag) for tag in one["tags"]),
        sampling=dict(one["sampling"]),
    )
    return Imported(conversation, messages)


def _chatgpt(one: dict[str, Any]) -> Imported | None:
    """Read a tree of nodes that name their parent; nodes without words of user or model are left out of it."""
    nodes: dict[str, Any] = one["mapping"]
    numbers: dict[str, int] = {}
    messages: list[Message] = []
    pending = [key for key, node in nodes.items() if node.get("parent") not in nodes]
    nearest: dict[str, int | None] = dict.fromkeys(pending)
    while pending:
        key = pending.pop(0)
        node, parent_id = nodes[key], nearest[key]
        message = _chatgpt_message(node.get("message"), len(messages) + 1, parent_id)
        if message is not None:
            messages.append(message)
            numbers[key] = parent_id = message.message_id
        for child in node.get("children") or []:
            if child in nodes and child not in nearest:
                nearest[child] = parent_id
                pending.append(child)
    if not messages:
        return None
    created = float(one.get("create_time") or time.time())
    title = one.get("title") or title_of(messages[0].content)
    leaf = numbers.get(str(one.get("current_node")), messages[-1].message_id)
    updated = float(one.get("update_time") or created)
    return Imported(Conversation(0, _text(title), None, None, created, updated, leaf), messages)


def _chatgpt_message(message: Any, message_id: int, parent_id: int | None) -> Message | None:
    if not isinstance(message, dict):
        return None
    role = {"user": Role.USER, "assistant": Role.ASSISTANT}.get(str((message.get("author") or {}).get("role")))
    parts = (message.get("content") or {}).get("parts") or []
    text = "\n\n".join(part for part in parts if isinstance(part, str)).strip()
    if role is None or not text:
        return None
    model = (message.get("metadata") or {}).get("model_slug")
    created = float(message.get("create_time") or time.time())
    return Message(message_id, parent_id, role, text, MessageState.COMPLETE, _optional(model), created)


def _oterm(path: Path) -> Iterator[Imported]:
    """Read oterm's tables `chat` and `message`: conversations without branches."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            chats = database.execute("SELECT * FROM chat").fetchall()
            for chat in chats:
                rows = database.execute("SELECT * FROM message WHERE chat_id = ? ORDER BY id", (chat["id"],)).fetchall()
                if (found := _oterm_chat(dict(chat), [dict(row) for row in rows])) is not None:
                    yield found
    except sqlite3.Error as error:
        raise FormatError(f"{path.name}: is a database, but not one of oterm's: {error}") from error


def _oterm_chat(chat: dict[str, Any], rows: list[dict[str, Any]]) -> Imported | None:
    now, messages = time.time(), list[Message]()
    for row in rows:
        role = {"user": Role.USER, "assistant": Role.ASSISTANT}.get(row.get("author") or row.get("role") or "")
        if role is None or not isinstance(row.get("text"), str) or not row["text"]:
            continue
        parent_id = messages[-1].message_id if messages else None
        model = _optional(chat.get("model")) if role is Role.ASSISTANT else None
        number = len(messages) + 1
        messages.append(Message(number, parent_id, role, row["text"], MessageState.COMPLETE, model, now))
    if not messages:
        return None
    title = chat.get("name") or title_of(messages[0].content)
    system = _optional(chat.get("system"))
    return Imported(
        Conversation(0, str(title), _optional(chat.get("model")), system, now, now, len(messages)), messages
    )


def _ended(state: MessageState) -> MessageState:
    return MessageState.STOPPED if state is MessageState.STREAMING else state


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _optional(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
