"""`qlocal completion bash|zsh`: for `eval "$(qlocal completion bash)"` in a shell's start file."""

from __future__ import annotations

import argparse

import shtab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    from qlocal.cli import build_parser  # a cycle at import time: the parser imports every command

    print(shtab.complete(build_parser(), shell=args.shell))
    return 0
