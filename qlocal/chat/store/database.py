"""Open the history file: create, recover, migrate. Knows files and SQLite, not what a conversation is.

WAL with synchronous=FULL: a commit is on the disk when it returns, so that a power cut loses no more than a
kill does. It costs one fsync per commit, at most two a second while an answer streams, in a thread of its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from qlocal.chat.store.han import han
from qlocal.chat.store.migrations import LATEST, MIGRATIONS, Migration
from qlocal.chat.store.pages import HEADER_BYTES, page_bytes, read_journal
from qlocal.chat.store.salvage import Salvage, read_rows, salvage_of, write_rows
from qlocal.errors import HistoryError

# Another chat may hold the write lock for as long as its disk needs for one commit.
BUSY_TIMEOUT_S = 10.0
# Up to this size the whole file is checked at start (about 0.1 s); a larger one only where it is read.
MAX_CHECKED_BYTES = 32 << 20
MAGIC = b"SQLite format 3\0"
# A larger number is a damaged one, not that of a version to come.
MAX_NEWER = 1000
MAX_KEPT = 1000
"""Damaged files of one second."""


def open_database(
    path: Path, migrations: Sequence[Migration] = MIGRATIONS
) -> tuple[sqlite3.Connection, Salvage | None]:
    """Open the history at `path` for reading and writing; it is made if it does not exist.

    Returns the connection and, where the file was damaged, what became of it. HistoryError if it cannot be opened, or
    was written by a newer version.
    """
    with _failures_told(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of chats that start at once, one makes the file, or mends it; SQLite itself would refuse the others.
        with _alone(path):
            try:
                return _open(path, migrations), None
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                salvage = _replace_by_salvage(path)
            return _open(path, migrations), salvage


def salvage_database(path: Path) -> Salvage:
    """Make the history anew of all that can be read of it, also where it seems whole; the old file is kept."""
    if not path.exists():
        raise HistoryError(f"{path}: there is no history yet")
    with _failures_told(path), _alone(path):
        return _replace_by_salvage(path)


def copy_salvaged(damaged: Path, target: Path) -> Salvage:
    """Write what can be read of a damaged history to a new file."""
    with _failures_told(damaged):
        return _write_salvaged(damaged, target, damaged)


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


@contextmanager
def _failures_told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        hint = None
        if error.sqlite_errorcode == sqlite3.SQLITE_ERROR:  # its tables are not what its version says
            hint = "`qlocal history recover` keeps the file and makes a new one of what can be read."
        raise HistoryError(f"{path}: cannot be opened: {error}", hint=hint) from error
    except (sqlite3.DatabaseError, OSError) as error:
        raise HistoryError(f"{path}: cannot be opened: {error}") from error


def _open(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    is_checked = _check_untouched(path)
    path.touch(mode=0o600, exist_ok=True)
    connection = connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        if not is_checked and path.stat().st_size <= MAX_CHECKED_BYTES:
            _check(connection)
        _migrate(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_untouched(path: Path) -> bool:
    """Look for damage without a change to the file: closing a connection that may write would mix its journal into it.
    Returns whether that could be done; sqlite3.DatabaseError for damage."""
    if not path.exists() or path.stat().st_size > MAX_CHECKED_BYTES:
        return False
    if _is_journal_damaged(path):
        raise sqlite3.DatabaseError("the journal is damaged")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.create_function("qlocal_han", 1, han, deterministic=True)
            _check(connection)
    except sqlite3.OperationalError:
        return False  # such as one that ended while it was made: to be mended by who may write
    return True


def _is_journal_damaged(path: Path) -> bool:
    """Return whether the journal of a history is not what was written. One that another chat writes meanwhile, which
    may be read half old and half new, is not called so."""
    journal = _beside(path, "-wal")
    try:
        if not 0 < journal.stat().st_size <= MAX_CHECKED_BYTES:
            return False
        with path.open("rb") as file:
            size = page_bytes(file.read(HEADER_BYTES))
        found = journal.read_bytes()
        return read_journal(found, size).is_damaged and journal.read_bytes() == found
    except FileNotFoundError:  # there is none, or the last chat closes: then the file has all of it
        return False


def connect(path: Path | str) -> sqlite3.Connection:
    """Return a connection with our settings; each thread has its own."""
    # isolation_level None: transactions begin where `transaction` says, not where the module guesses.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    # A byte that was flipped on the disk costs a character, not the conversation.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.create_function("qlocal_han", 1, han, deterministic=True)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
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
    partial = _beside(target, ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    with closing(sqlite3.connect(partial)) as copy:
        connection.backup(copy)
    partial.replace(target)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock on the folder."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace_by_salvage(path: Path) -> Salvage:
    """Keep a file under another name and put what can be read of it in its place, in this order."""
    kept = _keep(path)
    partial = _beside(path, ".partial")
    try:
        salvage = _write_salvaged(path, partial, kept)
    except BaseException:
        partial.unlink(missing_ok=True)
        for suffix in ("", "-wal"):
            _beside(kept, suffix).unlink(missing_ok=True)
        raise
    for suffix in ("-wal", "-shm"):
        _beside(path, suffix).unlink(missing_ok=True)
    partial.replace(path)
    return salvage


def _write_salvaged(damaged: Path, target: Path, kept: Path) -> Salvage:
    main, journal = damaged.read_bytes(), _beside(damaged, "-wal")
    version = int.from_bytes(main[60:64], "big")
    if main.startswith(MAGIC) and LATEST < version < LATEST + MAX_NEWER:
        raise HistoryError(
            f"{damaged}: the history is damaged, and of schema {version}; this qlocal knows {LATEST}",
            hint="A newer qlocal can read what is left of it.",
        )
    found = read_rows(main, journal.read_bytes() if journal.exists() else b"")
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)
    with closing(connect(target)) as database:
        _migrate(database, target, MIGRATIONS)
        with transaction(database):
            write_rows(found, database)
        _check(database)
    return salvage_of(found, kept)


def _keep(path: Path) -> Path:
    """Give a damaged file a second name, and copy its journal beside it. Returns the name."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, MAX_KEPT):
        kept = path.with_name(f"{path.stem}.damaged-{stamp}{f'-{number}' if number > 1 else ''}{path.suffix}")
        if not kept.exists():
            break
    try:
        os.link(path, kept)
    except OSError:  # a file system without second names
        shutil.copy2(path, kept)
    journal = _beside(path, "-wal")
    if journal.exists():
        shutil.copy2(journal, _beside(kept, "-wal"))
    return kept


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
