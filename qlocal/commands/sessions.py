"""`qlocal sessions`: what is kept of conversations on disk, and the prompts that are kept under names."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qlocal import launch
from qlocal.clean import clean_line
from qlocal.commands.options import human_bytes
from qlocal.commands.waiting import wait_until_ready
from qlocal.config import load_settings
from qlocal.errors import ServerError, UsageError
from qlocal.server import sessions
from qlocal.server.shapes import Json

ACTIONS = ("list", "restore", "rm", "clear")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="ACTION", nargs="?", choices=ACTIONS, default="list", help=", ".join(ACTIONS))
    parser.add_argument("name", metavar="NAME", nargs="?", help="the session, for restore and rm")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    takes_name = args.action in ("restore", "rm")
    if takes_name != (args.name is not None):
        raise UsageError(f"sessions {args.action} takes {'the NAME of a session' if takes_name else 'no NAME'}")
    if args.action == "restore":
        found = _restore(args.name)
        said = f"{found['tokens']:,} tokens of '{args.name}' are in the cache, {found['restored_tokens']:,} from disk"
    else:
        folder = load_settings().sessions
        found = _stored(folder, args.action, args.name)
        said = _listed(found)
    print(json.dumps(found) if args.json else said)
    return 0


def _stored(folder: Path, action: str, name: str | None) -> Json:
    if action == "rm":
        return sessions.forget_saved(folder, name or "")
    return sessions.forget(folder) if action == "clear" else sessions.stored(folder)


def _listed(found: Json) -> str:
    lines = [f"in {found['folder']}: {found['files']} files, {human_bytes(found['bytes'])}"]
    for one in found["saved"]:
        lines.append(f"  {one['name']:24} {one['tokens']:>9,} tokens  {clean_line(one['model'])}")
    return "\n".join(lines)


def _restore(name: str) -> Json:
    address = launch.own_address()
    if launch.fetch_status(address) is None:
        raise ServerError("no server is running", hint="Load the session's model first: qlocal run, chat or serve.")
    wait_until_ready(address)
    with launch.connect(address, read_timeout_s=None) as client:
        response = client.post(f"/qlocal/sessions/{name}")
    if response.status_code != 200:
        raise launch.error_of(response)
    found: Json = response.json()
    return found
