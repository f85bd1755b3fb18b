"""`qlocal history`: the chat's conversations without the chat: list, search, export, import."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.clean import clean_line
from qlocal.config import load_settings
from qlocal.errors import UsageError

if TYPE_CHECKING:
    from qlocal.chat.store.history import History

NEEDS = {"search": "a text", "export": "a file", "import": "a file"}
_ALL = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = ("list", *NEEDS)
    parser.add_argument("action", choices=actions, metavar="ACTION", help=", ".join(actions))
    parser.add_argument("argument", nargs="?", metavar="TEXT|FILE", help="what to search for, or the file")
    parser.add_argument("--conversation", type=int, metavar="N", help="export this one alone; `list` shows the numbers")


def run(args: argparse.Namespace) -> int:
    from qlocal.chat.store.database import open_database
    from qlocal.chat.store.history import History
    from qlocal.chat.store.place import history_path

    if args.action in NEEDS and not args.argument:
        raise UsageError(f"history {args.action} needs {NEEDS[args.action]} behind it")
    connection, notice = open_database(history_path(load_settings()))
    with closing(connection):
        if notice:
            print(notice)
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
