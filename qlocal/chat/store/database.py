"""Open the history file: create, recover, migrate. Knows files and SQLite, not what a conversation is.

WAL with synchronous=FULL: a commit is on the disk when it returns, so that a power cut loses no more than a
kill does. It costs one fsync per commit, at most two a second while an answer streams, in a thread of its own.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from qlocal.chat.store.han import han
from qlocal.chat.store.migrations import MIGRATIONS, Migration
from qlocal.errors import HistoryError

# Another chat may hold the write lock for as long as its disk needs for one commit.
BUSY_TIMEOUT_S = 10.0
# Up to this size the whole file is checked at start (about 0.1 s); a larger one only where it is read.
MAX_CHECKED_BYTES = 32 << 20


def open_database(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> tuple[sqlite3.Connection, str | None]:
    """Open the history at `path` for reading and writing; it is made if it does not exist.

    Returns the connection and a sentence for the user where a damaged file was put aside.
    HistoryError if it cannot be opened, or was written by a newer version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _open(path, migrations), None
    except (sqlite3.OperationalError, OSError) as error:
        raise HistoryError(f"{path}: cannot be opened: {error}") from error
    except sqlite3.DatabaseError:
        kept = _put_aside(path)
    message = f"The history file was damaged; it is kept as {kept.name} and a new one was begun"
    return _open(path, migrations), message


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Hold the write lock from the first statement on: no other chat can write between a read and a write."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        # A full disk has SQLite roll back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _open(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    path.touch(mode=0o600, exist_ok=True)
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        if path.stat().st_size <= MAX_CHECKED_BYTES:
            _check(connection)
        _migrate(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path | str) -> sqlite3.Connection:
    """Return a connection with our settings; each thread has its own."""
    # isolation_level None: transactions begin where `transaction` says, not where the module guesses.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.create_function("qlocal_han", 1, han, deterministic=True)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    latest = migrations[-1].version
    version = _version(connection)
    if 0 < version < latest:
        _copy(connection, path.with_name(f"{path.stem}.v{version}{path.suffix}"))
    for migration in migrations:
        with transaction(connection):
            # Read again inside the lock: another chat that starts now may have done this step.
            if _version(connection) < migration.version:
                for statement in migration.statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {migration.version}")
    if (version := _version(connection)) > latest:
        raise HistoryError(
            f"{path}: the history has schema {version}, this qlocal knows {latest}",
            hint="Update qlocal, or set QLOCAL_HOME to another folder.",
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    """Copy the file as it is before a migration; an older copy of the same schema is replaced."""
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    with closing(sqlite3.connect(partial)) as copy:
        connection.backup(copy)
    partial.replace(target)


def _put_aside(path: Path) -> Path:
    """Rename a damaged file, with the journal that belongs to it, and return its new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    kept = path.with_name(f"{path.stem}.damaged-{stamp}{path.suffix}")
    for suffix in ("-wal", "-shm"):
        journal = path.with_name(path.name + suffix)
        if journal.exists():
            journal.replace(kept.with_name(kept.name + suffix))
    path.replace(kept)
    return kept
