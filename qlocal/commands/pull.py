"""`qlocal pull`: fetches a checkpoint into the model folder."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from qlocal.clean import clean_line
from qlocal.commands.options import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a catalogue name, or owner/name on the hub")
    parser.add_argument("--include", metavar="PATTERN", help="which weight files, as '*q4_k_m*'")
    parser.add_argument("--revision", metavar="REVISION", help="a branch, tag or commit; default: the main branch")


def run(args: argparse.Namespace) -> int:
    from qlocal import hub

    with _Progress() as progress:
        path = hub.pull(
            args.model,
            include=args.include,
            revision=args.revision,
            on_file=progress.begin_file,
            on_bytes=progress.advance,
        )
    print(f"{path}: {human_bytes(hub.total_size([path]))}, every hash agrees")
    return 0


class _Progress:
    """A line for every file on standard error, and a bar below them where that is a terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            *Progress.get_default_columns(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("fetching", total=None)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin_file(self, name: str, done: int, total: int) -> None:
        print(f"{human_bytes(done)} of {human_bytes(total)}: {clean_line(name)}", file=sys.stderr, flush=True)
        self._bar.update(self._task, completed=done, total=total)

    def advance(self, num_bytes: int) -> None:
        self._bar.advance(self._task, num_bytes)
