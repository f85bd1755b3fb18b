"""Conversations and messages in SQL. Synchronous: `threaded.py` gives it its thread.

Nothing is ever overwritten by a new answer: a regenerated one is a sibling under the same parent.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from qlocal.chat.store import rows
from qlocal.chat.store.database import transaction
from qlocal.chat.store.han import han, is_han
from qlocal.chat.store.records import Conversation, Hit, Message, MessageState, Role, title_of

MIN_WORD_CHARS = 3

# How many messages stand under the same parent, and how many of them are older. Without a parent they are told apart by
# their conversation; with one the index alone answers.
_BESIDE = """
    (SELECT COUNT(*) FROM message s WHERE s.parent_id IS m.parent_id
        AND (m.parent_id IS NOT NULL OR s.conversation_id = m.conversation_id)) AS siblings,
    (SELECT COUNT(*) FROM message s WHERE s.parent_id IS m.parent_id AND s.id < m.id
        AND (m.parent_id IS NOT NULL OR s.conversation_id = m.conversation_id)) AS sibling_idx
"""
# A parent is always older: what a damaged row says otherwise would lead in circles.
_BRANCH = f"""
    WITH RECURSIVE branch (id, depth) AS (
        SELECT :leaf, 0
        UNION ALL
        SELECT m.parent_id, depth + 1 FROM branch JOIN message m ON m.id = branch.id
        WHERE m.parent_id < m.id AND branch.id IS NOT :since
    )
    SELECT m.*, {_BESIDE} FROM branch JOIN message m ON m.id = branch.id ORDER BY depth DESC
"""
_TIP = """
    WITH RECURSIVE tip (id, depth) AS (
        SELECT :message, 0
        UNION ALL
        SELECT (SELECT MAX(m.id) FROM message m WHERE m.parent_id = tip.id), depth + 1 FROM tip
        WHERE EXISTS (SELECT 1 FROM message m WHERE m.parent_id = tip.id AND m.id > tip.id)
    )
    SELECT id FROM tip ORDER BY depth DESC LIMIT 1
"""


class History:
    """The history through one connection. Every change is one transaction that begins with the write lock."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def new_conversation(self, first_text: str, model: str | None, system: str | None) -> int:
        """Begin a conversation; its title is the first line of its first message."""
        now = time.time()
        with transaction(self._db):
            row = self._db.execute(
                "INSERT INTO conversation (title, model, system, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
                (title_of(first_text), model, system, now, now),
            )
        return _row_id(row)

    def add_message(self, conversation_id: int, parent_id: int | None, role: Role, content: str) -> int:
        """Add a finished message under `parent_id`; it becomes the leaf."""
        return self._insert(conversation_id, parent_id, role, content, MessageState.COMPLETE, None)

    def begin_answer(self, conversation_id: int, parent_id: int, model: str | None) -> int:
        """Add the empty message that an answer will fill, as leaf."""
        return self._insert(conversation_id, parent_id, Role.ASSISTANT, "", MessageState.STREAMING, model)

    def begin_summary(
        self, conversation_id: int, parent_id: int | None, model: str | None, summary_of: Sequence[int]
    ) -> int:
        """Add the empty message that a summary of others will fill; what is shown stays as it is."""
        meta = {"summary_of": list(summary_of)}
        return self._insert(
            conversation_id, parent_id, Role.ASSISTANT, "", MessageState.STREAMING, model, meta, is_leaf=False
        )

    def put_summary(self, conversation_id: int, summary_id: int, prompt_id: int | None) -> None:
        """Show a summary as the last message, or with a prompt behind it; the prompt stays where it was as well."""
        with transaction(self._db):
            leaf = summary_id
            if prompt_id is not None:
                columns = "conversation_id, role, content, state, model, created_at"
                row = self._db.execute(
                    f"INSERT INTO message (parent_id, {columns}) SELECT ?, {columns} FROM message WHERE id = ?",
                    (summary_id, prompt_id),
                )
                leaf = _row_id(row)
            self._db.execute("UPDATE conversation SET leaf_id = ? WHERE id = ?", (leaf, conversation_id))

    def save_partial(self, message_id: int, content: str, meta: dict[str, Any] | None = None) -> None:
        """Keep what has been written of an answer so far, and what is known of it where that is told."""
        with transaction(self._db):
            self._db.execute("UPDATE message SET content = ? WHERE id = ?", (content, message_id))
            if meta is not None:
                self._db.execute("UPDATE message SET meta = ? WHERE id = ?", (json.dumps(meta), message_id))

    def finish_answer(self, message_id: int, content: str, state: MessageState, meta: dict[str, Any]) -> None:
        """Write the last word on an answer: its text, how it ended and what is known of it."""
        with transaction(self._db):
            self._db.execute(
                "UPDATE message SET content = ?, state = ?, meta = ?, writer_pid = NULL WHERE id = ?",
                (content, state.value, json.dumps(meta), message_id),
            )

    def save_logprobs(self, message_id: int, packed: bytes) -> None:
        """Keep what the model gave the tokens of an answer, as `logprobs.pack` made it."""
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO logprobs (message_id, packed) VALUES (?, ?)", (message_id, packed))

    def logprobs(self, message_id: int) -> bytes | None:
        """Return what `save_logprobs` kept of an answer, None where there is nothing."""
        row = self._db.execute("SELECT packed FROM logprobs WHERE message_id = ?", (message_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_model(self, conversation_id: int, model: str | None) -> None:
        """Remember which model a conversation was last held with."""
        with transaction(self._db):
            self._db.execute("UPDATE conversation SET model = ? WHERE id = ?", (model, conversation_id))

    def select_branch(self, conversation_id: int, message_id: int) -> None:
        """Show the branch that goes through a message, down to the newest message below it."""
        with transaction(self._db):
            tip = self._db.execute(_TIP, {"message": message_id}).fetchone()[0]
            self._db.execute("UPDATE conversation SET leaf_id = ? WHERE id = ?", (tip, conversation_id))

    def rename(self, conversation_id: int, title: str) -> None:
        """Give a conversation another title."""
        self._set(conversation_id, "title", title_of(title))

    def pin(self, conversation_id: int, *, is_pinned: bool) -> None:
        """Keep a conversation on top of the list, or no longer."""
        self._set(conversation_id, "pinned_at", time.time() if is_pinned else None)

    def tag(self, conversation_id: int, tags: Sequence[str]) -> None:
        """Give a conversation these tags and no others."""
        self._set(conversation_id, "tags", json.dumps(list(tags), ensure_ascii=False))

    def set_system(self, conversation_id: int, system: str | None) -> None:
        """Give a conversation another system message."""
        self._set(conversation_id, "system", system)

    def leave_out(self, message_ids: Sequence[int], is_left_out: bool) -> None:
        """Mark messages as no longer sent to a model, or as sent again."""
        with transaction(self._db):
            self._db.executemany(
                "UPDATE message SET meta = json_set(meta, '$.left_out', json(?)) WHERE id = ?",
                [(json.dumps(is_left_out), message_id) for message_id in message_ids],
            )

    def set_sampling(self, conversation_id: int, sampling: Mapping[str, Any]) -> None:
        """Remember with which fields a conversation asks."""
        self._set(conversation_id, "sampling", json.dumps(dict(sampling)))

    def delete(self, conversation_id: int) -> None:
        """Delete a conversation with all its branches."""
        with transaction(self._db):
            self._db.execute("UPDATE conversation SET leaf_id = NULL WHERE id = ?", (conversation_id,))
            self._db.execute("DELETE FROM conversation WHERE id = ?", (conversation_id,))
            self._db.execute("DELETE FROM draft WHERE conversation_id = ?", (conversation_id,))

    def prune(self, conversation_id: int, message_id: int) -> int:
        """Delete a message and all below it; what is shown then is the newest branch beside it, or up to its parent.
        Returns how many messages are gone."""
        with transaction(self._db):
            parent_id = self._db.execute("SELECT parent_id FROM message WHERE id = ?", (message_id,)).fetchone()[0]
            before = self._count(conversation_id)
            self._db.execute("UPDATE conversation SET leaf_id = NULL WHERE id = ?", (conversation_id,))
            self._db.execute("DELETE FROM message WHERE id = ?", (message_id,))
            query = "SELECT MAX(id) FROM message WHERE conversation_id = ? AND parent_id IS ?"
            beside = self._db.execute(query, (conversation_id, parent_id)).fetchone()[0]
            leaf = parent_id if beside is None else self._db.execute(_TIP, {"message": beside}).fetchone()[0]
            self._db.execute("UPDATE conversation SET leaf_id = ? WHERE id = ?", (leaf, conversation_id))
            return before - self._count(conversation_id)

    def messages(self, conversation_id: int) -> list[Message]:
        """Return all messages of a conversation, whatever their branch, in the order in which they came."""
        query = f"SELECT m.*, {_BESIDE} FROM message m WHERE m.conversation_id = ? ORDER BY m.id"
        return [rows.message(row) for row in self._db.execute(query, (conversation_id,))]

    def add_conversation(self, conversation: Conversation, messages: Sequence[Message]) -> int:
        """Add a whole conversation as it is, its messages under new ids. Parents come before their children; its
        leaf_id is of the ids given."""
        new_ids: dict[int, int] = {}
        with transaction(self._db):
            row = self._db.execute(
                "INSERT INTO conversation (title, model, system, created_at, updated_at, tags, sampling)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    title_of(conversation.title),
                    conversation.model,
                    conversation.system,
                    conversation.created_at,
                    conversation.updated_at,
                    json.dumps(list(conversation.tags), ensure_ascii=False),
                    json.dumps(conversation.sampling),
                ),
            )
            conversation_id = _row_id(row)
            for message in messages:
                row = self._db.execute(
                    "INSERT INTO message (conversation_id, parent_id, role, content, state, model, created_at, meta)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        conversation_id,
                        None if message.parent_id is None else new_ids[message.parent_id],
                        message.role.value,
                        message.content,
                        message.state.value,
                        message.model,
                        message.created_at,
                        json.dumps(_with_new_ids(message, new_ids)),
                    ),
                )
                new_ids[message.message_id] = _row_id(row)
            leaf = new_ids.get(conversation.leaf_id or -1, max(new_ids.values(), default=None))
            self._db.execute("UPDATE conversation SET leaf_id = ? WHERE id = ?", (leaf, conversation_id))
        return conversation_id

    def save_draft(self, conversation_id: int | None, content: str) -> None:
        """Keep what is written but not sent; None stands for the conversation that has no message yet."""
        key = conversation_id or 0
        with transaction(self._db):
            if content:
                self._db.execute("INSERT OR REPLACE INTO draft VALUES (?, ?, ?)", (key, content, time.time()))
            else:
                self._db.execute("DELETE FROM draft WHERE conversation_id = ?", (key,))

    def draft(self, conversation_id: int | None) -> str:
        """Return what was written and not sent, an empty text for nothing."""
        query = "SELECT content FROM draft WHERE conversation_id = ?"
        row = self._db.execute(query, (conversation_id or 0,)).fetchone()
        return "" if row is None else str(row[0])

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Return the messages that hold all words of `text`, newest first; fewer than three letters are no word, a
        single Chinese character is one."""
        trigrams = [word for word in text.split() if len(word) >= MIN_WORD_CHARS]
        shorts = [word for word in text.split() if len(word) < MIN_WORD_CHARS and is_han(word)]
        if not trigrams and not shorts:
            return []
        among = f"SELECT rowid FROM {'message_text' if trigrams else 'message_han'} WHERE "
        conditions, values = [], []
        for table, words in (("message_text", trigrams), ("message_han", [han(word) for word in shorts])):
            if words:
                conditions.append(f"{table} MATCH ?")
                values.append(" AND ".join('"' + word.replace('"', '""') + '"' for word in words))
        among += conditions[0]
        if len(conditions) > 1:
            among += " AND rowid IN (SELECT rowid FROM message_han WHERE message_han MATCH ?)"
        query = f"""
            SELECT m.id, m.conversation_id, m.role, m.content, m.created_at, c.title FROM message m
            JOIN conversation c ON c.id = m.conversation_id
            WHERE m.id IN ({among} ORDER BY rowid DESC LIMIT ?) ORDER BY m.id DESC
        """
        return [rows.hit(row, trigrams + shorts) for row in self._db.execute(query, (*values, limit))]

    def _set(self, conversation_id: int, column: str, value: str | float | None) -> None:
        with transaction(self._db):
            self._db.execute(f"UPDATE conversation SET {column} = ? WHERE id = ?", (value, conversation_id))

    def _count(self, conversation_id: int) -> int:
        query = "SELECT COUNT(*) FROM message WHERE conversation_id = ?"
        return int(self._db.execute(query, (conversation_id,)).fetchone()[0])

    def close_orphans(self) -> None:
        """Mark answers as stopped whose chat ended while it wrote them; their text stays."""
        query = "SELECT DISTINCT writer_pid FROM message WHERE state = 'streaming' AND writer_pid IS NOT NULL"
        dead = [row[0] for row in self._db.execute(query) if not _is_alive(row[0])]
        if not dead:
            return
        with transaction(self._db):
            self._db.executemany(
                "UPDATE message SET state = 'stopped', writer_pid = NULL WHERE state = 'streaming' AND writer_pid = ?",
                [(pid,) for pid in dead],
            )

    def conversations(self, limit: int = 1000) -> list[Conversation]:
        """Return the conversations without their messages: those that are pinned, then the others, last used first."""
        query = """
            SELECT c.*, (SELECT COUNT(*) FROM message m WHERE m.conversation_id = c.id) AS num_messages
            FROM conversation c ORDER BY c.pinned_at IS NULL, c.updated_at DESC, c.id DESC LIMIT ?
        """
        return [rows.conversation(row) for row in self._db.execute(query, (limit,))]

    def conversation(self, conversation_id: int) -> Conversation | None:
        """Return one conversation, or None if it is gone."""
        query = "SELECT c.*, 0 AS num_messages FROM conversation c WHERE c.id = ?"
        row = self._db.execute(query, (conversation_id,)).fetchone()
        return None if row is None else rows.conversation(row)

    def branch(self, conversation_id: int, since: int | None = None) -> list[Message]:
        """Return the messages of the shown branch, first to last.

        since: a message; if it is on the branch nothing before it is read, which costs no more in a long conversation.
        """
        row = self._db.execute("SELECT leaf_id FROM conversation WHERE id = ?", (conversation_id,)).fetchone()
        if row is None or row[0] is None:
            return []
        return [rows.message(row) for row in self._db.execute(_BRANCH, {"leaf": row[0], "since": since})]

    def siblings(self, message_id: int) -> list[int]:
        """Return the ids of all branches at a message, its own included, oldest first."""
        query = """
            SELECT other.id FROM message one JOIN message other
            ON other.conversation_id = one.conversation_id AND other.parent_id IS one.parent_id
            WHERE one.id = ? ORDER BY other.id
        """
        return [row[0] for row in self._db.execute(query, (message_id,))]

    def recent_prompts(self, limit: int = 200) -> list[str]:
        """Return what the user last wrote, newest first, without repetitions."""
        query = """
            SELECT content FROM message WHERE role = 'user' GROUP BY content ORDER BY MAX(id) DESC LIMIT ?
        """
        return [row[0] for row in self._db.execute(query, (limit,))]

    def _insert(
        self,
        conversation_id: int,
        parent_id: int | None,
        role: Role,
        content: str,
        state: MessageState,
        model: str | None,
        meta: Mapping[str, Any] | None = None,
        *,
        is_leaf: bool = True,
    ) -> int:
        now = time.time()
        writer_pid = os.getpid() if state is MessageState.STREAMING else None
        with transaction(self._db):
            row = self._db.execute(
                "INSERT INTO message (conversation_id, parent_id, role, content, state, writer_pid, model, created_at,"
                " meta) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    conversation_id,
                    parent_id,
                    role.value,
                    content,
                    state.value,
                    writer_pid,
                    model,
                    now,
                    json.dumps(dict(meta or {})),
                ),
            )
            message_id = _row_id(row)
            self._db.execute("UPDATE conversation SET updated_at = ? WHERE id = ?", (now, conversation_id))
            if is_leaf:
                self._db.execute("UPDATE conversation SET leaf_id = ? WHERE id = ?", (message_id, conversation_id))
        return message_id


def _row_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None, "an INSERT that succeeded has a row id"
    return cursor.lastrowid


def _with_new_ids(message: Message, new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return what is known of a message, a summary's messages by their new ids."""
    if not isinstance(message.meta.get("summary_of"), list):
        return message.meta
    return message.meta | {"summary_of": [new_ids[one] for one in message.meta["summary_of"] if one in new_ids]}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
