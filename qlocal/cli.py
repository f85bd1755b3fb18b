"""`qlocal`: finds the command and shows what went wrong in one line. Imports a command only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

import qlocal
from qlocal.cards import number_by_bus
from qlocal.clean import clean
from qlocal.devices import keep_threads_calm
from qlocal.errors import QLocalError, UsageError, memory_in_words

COMMANDS = {
    "chat": "talk to a model in the terminal",
    "history": "list, search, export or import conversations",
    "run": "answer one question on standard output",
    "serve": "serve OpenAI's HTTP interface",
    "sessions": "list, restore or remove what is kept of conversations on disk",
    "stop": "end the server that runs in the background",
    "models": "list, show or remove models",
    "plan": "show what a model takes, and the context that fits",
    "pull": "fetch a model from the hub",
    "template": "show a model's chat template",
    "eval": "measure perplexity and the distance to a reference",
    "bench": "measure the speed of kernels and engine",
    "doctor": "show devices, memory, kernels and settings",
    "completion": "print the completion script of a shell",
}
INTERRUPTED = 130
BROKEN_PIPE = 141
"""Exit codes as a shell would give them: 128 and the number of the signal."""


class Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage: every error is one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for errors, 3 for a failed quality gate."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_threads_calm()
    number_by_bus()
    try:
        with memory_in_words():
            code = _run(arguments)
        sys.stdout.flush()
        return code
    except QLocalError as error:
        print(f"qlocal: {clean(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def build_parser(names: Sequence[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Return the parser of all commands, for help and completion; only `names` are imported and have arguments."""
    parser = Parser(prog="qlocal", description="Run 4-bit language models on this machine.")
    parser.add_argument("--version", action="version", version=f"qlocal {qlocal.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=_sentence(help_text))
        if name in names:
            _module(name).add_arguments(command)
    return parser


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        build_parser(()).parse_args(arguments or ["--help"])
        raise AssertionError("the parser ends for --help, --version and unknown commands")
    name, *rest = arguments
    parser = _command_parser(name)
    # Intermixed: `run MODEL --seed 1 PROMPT` as well as `run --seed 1 MODEL PROMPT`.
    args = parser.parse_intermixed_args(rest)
    if name == "completion":
        args.parser = build_parser()
    code: int = _module(name).run(args)
    return code


def _command_parser(name: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"qlocal {name}", description=_sentence(COMMANDS[name]))
    _module(name).add_arguments(parser)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"qlocal.commands.{name}")


def _sentence(words: str) -> str:
    """Return `words` with a capital and a full stop; capitals inside stay, unlike with `str.capitalize`."""
    return f"{words[0].upper()}{words[1:]}."


if __name__ == "__main__":
    raise SystemExit(main())
