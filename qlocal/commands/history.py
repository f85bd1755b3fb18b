"""`qlocal history`: the chat's conversations without the chat: list, search, export, import, recover."""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.clean import clean_line
from qlocal.config import load_settings
from qlocal.errors import UsageError

if TYPE_CHECKING:
    from qlocal.chat.store.history import History
    from qlocal.chat.store.salvage import Salvage

NEEDS = {"search": "a text", "export": "a file", "import": "a file"}
_ALL = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = ("list", *NEEDS, "recover")
    parser.add_argument("action", choices=actions, metavar="ACTION", help=", ".join(actions))
    of_argument = "what to search for, or the file (recover: a damaged history that was kept)"
    parser.add_argument("argument", nargs="?", metavar="TEXT|FILE", help=of_argument)
    parser.add_argument("--conversation", type=int, metavar="N", help="export this one alone; `list` shows the numbers")


def run(args: argparse.Namespace) -> int:
    from qlocal.chat.store.database import open_database
    from qlocal.chat.store.history import History
    from qlocal.chat.store.place import history_path

    path = history_path(load_settings())
    if args.action == "recover":
        print(_recover(path, args.argument))
        return 0
    if args.action in NEEDS and not args.argument:
        raise UsageError(f"history {args.action} needs {NEEDS[args.action]} behind it")
    connection, salvage = open_database(path)
    with closing(connection):
        if salvage is not None:
            print(_told(salvage))
        history = History(connection)
        match args.action:
            case "list":
                _list(history)
            case "search":
                for hit in history.search(args.argument):
                    print(f"{hit.conversation_id:6}  {clean_line(hit.title)}: {clean_line(hit.snippet)}")
            case "export":
                print(_export(history, Path(args.argument), args.conversation))
            case "import":
                print(f"{_import(history, Path(args.argument))} conversations imported")
    return 0


def _recover(path: Path, damaged: str | None) -> str:
    """Make the history anew of what can be read of it; of another file, add what can be read of that."""
    from qlocal.chat.store.database import copy_salvaged, open_database, salvage_database
    from qlocal.chat.store.history import History

    if damaged is None:
        return _told(salvage_database(path))
    with tempfile.TemporaryDirectory(prefix="qlocal-") as folder:
        copy = Path(folder) / "read.sqlite3"
        salvage = copy_salvaged(Path(damaged), copy)
        with closing(open_database(copy)[0]) as old, closing(open_database(path)[0]) as new:
            read = History(old)
            for one in reversed(read.conversations(limit=_ALL)):
                History(new).add_conversation(one, read.messages(one.conversation_id))
    return _told(salvage)


def _told(salvage: Salvage) -> str:
    from qlocal.chat.words import salvaged

    lines = [salvaged(salvage)]
    for conversation_id, count in sorted(salvage.missing.items(), key=lambda item: item[0] or 0):
        where = "a conversation that is not known" if conversation_id is None else f"conversation {conversation_id}"
        lines.append(f"  {count} of {where} missing")
    return "\n".join(lines)


def _list(history: History) -> None:
    for one in history.conversations():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.updated_at))
        tags = "".join(f" #{clean_line(tag)}" for tag in one.tags)
        print(f"{one.conversation_id:6}  {when}  {one.num_messages:5}  {clean_line(one.title)}{tags}")


def _export(history: History, path: Path, wanted: int | None) -> Path:
    from qlocal.chat.exchange import writing
    from qlocal.chat.exchange.export import to_json

    chosen = [one for one in history.conversations(limit=_ALL) if wanted in (None, one.conversation_id)]
    if wanted is not None and not chosen:
        raise UsageError(f"--conversation {wanted}: there is none", hint="`qlocal history list` shows the numbers.")
    if len(chosen) == 1:
        one = chosen[0]
        branch, messages = history.branch(one.conversation_id), history.messages(one.conversation_id)
        return writing.write_new(path, writing.text_of(path, one, branch, messages))
    if path.suffix != ".json":
        raise UsageError(f"{path.name}: several conversations go into .json alone", hint="Or give --conversation.")
    return writing.write_new(path, to_json([(one, history.messages(one.conversation_id)) for one in chosen]))


def _import(history: History, path: Path) -> int:
    from qlocal.chat.exchange import importing

    found = importing.read(path)
    for imported in found:
        history.add_conversation(imported.conversation, imported.messages)
    return len(found)
