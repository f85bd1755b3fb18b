"""`qlocal completion bash|zsh`: for `eval "$(qlocal completion bash)"` in a shell's start file."""

from __future__ import annotations

import argparse

import shtab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(args: argparse.Namespace) -> int:
    print(shtab.complete(args.parser, shell=args.shell))
    return 0
