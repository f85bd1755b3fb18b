"""The history's schema, as numbered steps. A released step is never changed: a new one is added.

Each runs in one transaction; a file that held conversations is copied before the first step (`database.py`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Migration:
    """SQL that leads from schema `version - 1` to `version`."""

    version: int
    statements: tuple[str, ...]


_FIRST = (
    """
    CREATE TABLE conversation (
        id          INTEGER PRIMARY KEY,
        title       TEXT NOT NULL,
        model       TEXT,
        system      TEXT,
        created_at  REAL NOT NULL,
        updated_at  REAL NOT NULL,
        leaf_id     INTEGER REFERENCES message (id) ON DELETE SET NULL
    ) STRICT
    """,
    "CREATE INDEX conversation_by_time ON conversation (updated_at)",
    """
    CREATE TABLE message (
        id               INTEGER PRIMARY KEY,
        conversation_id  INTEGER NOT NULL REFERENCES conversation (id) ON DELETE CASCADE,
        parent_id        INTEGER REFERENCES message (id) ON DELETE CASCADE,
        role             TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        content          TEXT NOT NULL,
        state            TEXT NOT NULL CHECK (state IN ('streaming', 'complete', 'stopped', 'failed')),
        writer_pid       INTEGER,
        model            TEXT,
        created_at       REAL NOT NULL,
        meta             TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    """,
    "CREATE INDEX message_by_parent ON message (parent_id)",
    "CREATE INDEX message_by_conversation ON message (conversation_id)",
    # Trigrams find words of every script, Chinese and Japanese too, where there are no spaces to split at.
    """
    CREATE VIRTUAL TABLE message_text USING fts5 (
        content, content = 'message', content_rowid = 'id', tokenize = 'trigram'
    )
    """,
    # An answer enters the index when it is final: while it streams its row changes twice a second.
    """
    CREATE TRIGGER message_added AFTER INSERT ON message WHEN new.state <> 'streaming' BEGIN
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END
    """,
    """
    CREATE TRIGGER message_finished AFTER UPDATE ON message
    WHEN old.state = 'streaming' AND new.state <> 'streaming' BEGIN
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END
    """,
    """
    CREATE TRIGGER message_edited AFTER UPDATE OF content ON message
    WHEN old.state <> 'streaming' AND new.state <> 'streaming' BEGIN
        INSERT INTO message_text (message_text, rowid, content) VALUES ('delete', old.id, old.content);
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END
    """,
    """
    CREATE TRIGGER message_removed AFTER DELETE ON message WHEN old.state <> 'streaming' BEGIN
        INSERT INTO message_text (message_text, rowid, content) VALUES ('delete', old.id, old.content);
    END
    """,
)

_LOGPROBS = (
    # Apart from the message: drawing a branch of thousands of messages must not read them.
    """
    CREATE TABLE logprobs (
        message_id  INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
        packed      BLOB NOT NULL
    ) STRICT
    """,
)

_FINDING = (
    "ALTER TABLE conversation ADD COLUMN pinned_at REAL",
    "ALTER TABLE conversation ADD COLUMN tags TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE conversation ADD COLUMN sampling TEXT NOT NULL DEFAULT '{}'",
    # What is written but not sent; conversation 0 is the one that has no message yet.
    """
    CREATE TABLE draft (
        conversation_id  INTEGER PRIMARY KEY,
        content          TEXT NOT NULL,
        saved_at         REAL NOT NULL
    ) STRICT
    """,
    # Trigrams find nothing of one or two characters, which are a word in Chinese: they stand here one by one.
    "CREATE VIRTUAL TABLE message_han USING fts5 (han)",
    """
    INSERT INTO message_han (rowid, han)
    SELECT id, qlocal_han(content) FROM message WHERE state <> 'streaming' AND qlocal_han(content) <> ''
    """,
    """
    CREATE TRIGGER han_added AFTER INSERT ON message
    WHEN new.state <> 'streaming' AND qlocal_han(new.content) <> '' BEGIN
        INSERT INTO message_han (rowid, han) VALUES (new.id, qlocal_han(new.content));
    END
    """,
    """
    CREATE TRIGGER han_changed AFTER UPDATE OF content, state ON message WHEN new.state <> 'streaming' BEGIN
        DELETE FROM message_han WHERE rowid = old.id;
        INSERT INTO message_han (rowid, han) SELECT new.id, qlocal_han(new.content) WHERE qlocal_han(new.content) <> '';
    END
    """,
    """
    CREATE TRIGGER han_removed AFTER DELETE ON message BEGIN
        DELETE FROM message_han WHERE rowid = old.id;
    END
    """,
)

MIGRATIONS = (Migration(1, _FIRST), Migration(2, _LOGPROBS), Migration(3, _FINDING))
LATEST = MIGRATIONS[-1].version
