"""Histories as released versions wrote them, one file of SQL a schema: `python -m tests.chat.histories FILE` prints it.

Before a migration is added, a history of the schema it begins from is stored here.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

FOLDER = Path(__file__).parent


def dump(path: Path) -> str:
    """Return a history as SQL: its schema as it is, the rows of its tables, its version. What the indexes of the search
    hold comes from the triggers."""
    with closing(sqlite3.connect(path)) as database:
        objects = database.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        kinds = {name: (kind, sql) for kind, name, sql in objects}
        virtual = [name for name, (_, sql) in kinds.items() if "VIRTUAL" in sql]
        own = {name: kind for name, kind in kinds.items() if not any(name.startswith(f"{v}_") for v in virtual)}
        lines = [f"{sql};" for _, sql in own.values()]
        for name, (kind, _) in own.items():
            if kind == "table" and name not in virtual:
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
                quoted = " || ', ' || ".join(f"quote({column})" for column in columns)
                rows = database.execute(f"SELECT {quoted} FROM {name} ORDER BY rowid")
                lines += [f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({row[0]});" for row in rows]
        version = database.execute("PRAGMA user_version").fetchone()[0]
        return "\n".join([*lines, f"PRAGMA user_version = {version};", ""])


def stored_schemas() -> dict[int, Path]:
    """Return the stored histories by their schema."""
    return {int(path.stem.removeprefix("schema")): path for path in sorted(FOLDER.glob("schema*.sql"))}
