"""`qlocal pull`: fetches a checkpoint into the model folder."""

from __future__ import annotations

import argparse
import os
import sys

from qlocal.clean import clean_line
from qlocal.commands.options import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a catalogue name, or owner/name on the hub")
    parser.add_argument("--include", metavar="PATTERN", help="which weight files, as '*q4_k_m*'")
    parser.add_argument("--revision", metavar="REVISION", help="a branch, tag or commit; default: the main branch")


def run(args: argparse.Namespace) -> int:
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from qlocal import hub

    path = hub.pull(args.model, include=args.include, revision=args.revision, on_file=_show)
    print(f"{path}: {human_bytes(hub.total_size([path]))}, every hash agrees")
    return 0


def _show(name: str, done: int, total: int) -> None:
    print(f"{human_bytes(done)} of {human_bytes(total)}: {clean_line(name)}", file=sys.stderr, flush=True)
