"""Histories of every released version, opened by today's program: all is there, and a copy was made first."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qlocal.chat.store.database import connect, open_database
from qlocal.chat.store.han import han
from qlocal.chat.store.history import History
from qlocal.chat.store.migrations import LATEST, MIGRATIONS, Migration
from qlocal.chat.store.records import MessageState, Role
from tests.chat.histories import dump, stored_schemas

STORED = stored_schemas()
OLD = [schema for schema in STORED if schema < LATEST]
Rows = dict[str, list[dict[str, object]]]


def load(schema: int, path: Path) -> None:
    """Make the file that a version with this schema left."""
    with closing(connect(path)) as database:
        database.execute("PRAGMA foreign_keys = OFF")  # a conversation names its leaf, which comes after it
        database.executescript(STORED[schema].read_text(encoding="utf-8"))


def rows(path: Path) -> Rows:
    """Return every row of the tables that are not made from others."""
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        own = [name for name in names if not name.startswith(("message_", "sqlite_"))]
        return {name: [dict(row) for row in database.execute(f"SELECT * FROM {name}")] for name in own}


def test_every_schema_that_was_ever_released_has_a_stored_history() -> None:
    assert sorted(STORED) == [migration.version for migration in MIGRATIONS]


@pytest.mark.parametrize("schema", STORED)
def test_a_stored_history_has_the_schema_that_the_migrations_make(tmp_path: Path, schema: int) -> None:
    load(schema, tmp_path / "stored.sqlite3")
    open_database(tmp_path / "made.sqlite3", MIGRATIONS[:schema])[0].close()
    stored, made = dump(tmp_path / "stored.sqlite3"), dump(tmp_path / "made.sqlite3")
    assert stored.split("\nINSERT INTO")[0] == made.split("\nPRAGMA user_version")[0]


@pytest.mark.parametrize("schema", STORED)
def test_nothing_of_an_old_history_is_lost(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "history.sqlite3"
    load(schema, path)
    before = rows(path)
    connection, notice = open_database(path)
    after = rows(path)
    assert notice is None
    assert len(before["message"]) == 8 and len(before["conversation"]) == 3
    for table, old_rows in before.items():
        now = [{column: row[column] for column in old_rows[0]} for row in after[table]]
        assert now == old_rows, table
    with closing(connection):
        _can_be_read_and_written(History(connection))
        assert connection.execute("PRAGMA user_version").fetchone()[0] == LATEST
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.execute("INSERT INTO message_text (message_text) VALUES ('integrity-check')")
        assert not connection.execute("PRAGMA foreign_key_check").fetchall()


def _can_be_read_and_written(history: History) -> None:
    history.close_orphans()
    assert [m.content for m in history.branch(1)][1:] == [
        "A number with fewer bits; 量化模型。", "And 4 bits?", "Four bits are half a by",
    ]  # fmt: skip
    assert history.branch(1)[-1].state is MessageState.STOPPED  # its chat is gone
    assert history.siblings(2) == [2, 3]
    for text, message_id in {"fewer": 2, "量化": 2, "模": 2, "naïve": 4, "العالم": 8, "half": 7}.items():
        assert [hit.message_id for hit in history.search(text)] == [message_id], text
    new = history.add_message(1, 7, Role.USER, "added 新 today")
    assert [hit.message_id for hit in history.search("新")] == [new]
    history.tag(1, ["kept"])
    assert history.conversation(1).tags == ("kept",)  # type: ignore[union-attr]


@pytest.mark.parametrize("schema", OLD)
def test_the_file_is_copied_as_it_was_before_the_first_step(tmp_path: Path, schema: int) -> None:
    path = tmp_path / "history.sqlite3"
    load(schema, path)
    before = dump(path)
    open_database(path)[0].close()
    copy = tmp_path / f"history.v{schema}.sqlite3"
    assert dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    assert dump(path) != before


@pytest.mark.parametrize("schema", OLD)
@pytest.mark.parametrize("failing", range(2, LATEST + 1))
def test_a_step_that_fails_leaves_everything_as_the_steps_before_it_left_it(
    tmp_path: Path, schema: int, failing: int
) -> None:
    path = tmp_path / "history.sqlite3"
    load(schema, path)
    before = rows(path)
    broken = [
        Migration(one.version, (*one.statements, "INSERT INTO nowhere VALUES (1)")) if one.version == failing else one
        for one in MIGRATIONS
    ]
    if failing > schema:
        with pytest.raises(Exception, match="nowhere"):
            open_database(path, broken)
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA user_version").fetchone()[0] == failing - 1
    connection, _ = open_database(path)
    connection.close()
    after = rows(path)
    assert {table: len(found) for table, found in before.items()} == {table: len(after[table]) for table in before}


def test_chinese_characters_of_old_messages_are_found_one_by_one(tmp_path: Path) -> None:
    load(1, tmp_path / "history.sqlite3")
    connection, _ = open_database(tmp_path / "history.sqlite3")
    with closing(connection):
        found = connection.execute("SELECT rowid, han FROM message_han").fetchall()
    assert [tuple(row) for row in found] == [(2, han("A number with fewer bits; 量化模型。"))]
