"""`qlocal chat`: the terminal program."""

from __future__ import annotations

import argparse
import asyncio
import os

from qlocal.commands.options import add_draft, add_head, add_kv, add_model, add_split, devices, port, positive
from qlocal.config import ChatOptions, load_settings
from qlocal.errors import QLocalError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="an OpenAI-compatible server in the place of our own, or its name in config.toml",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message of new conversations")
    parser.add_argument("--devices", type=devices, metavar="LIST", help="cpu, cuda:0, ... separated by commas")
    parser.add_argument("--context", type=positive, metavar="TOKENS", help="size of the context; default: what fits")
    add_split(parser)
    add_head(parser)
    add_kv(parser)
    add_draft(parser)
    parser.add_argument(
        "--web", action="store_true", help="in a browser of this machine; needs `pip install 'qlocal[web]'`"
    )
    parser.add_argument("--web-port", type=port, default=0, metavar="PORT", help="of --web; default: any free one")
    parser.epilog = "The token of --endpoint is read from QLOCAL_TOKEN: arguments can be seen by other users."


def run(args: argparse.Namespace) -> int:
    if args.web:
        return _serve_page(arguments_of(args), args.web_port)
    settings = load_settings({"devices": args.devices, "max_context": args.context})
    options = ChatOptions(
        model=args.model,
        endpoint=args.endpoint,
        token=os.environ.get("QLOCAL_TOKEN"),
        context=settings.max_context,
        devices=settings.devices,
        head=args.head,
        split=args.split,
        kv=args.kv,
        draft=args.draft,
        system=args.system,
    )
    from qlocal.chat.app import run_chat  # Textual, which no other command needs

    return run_chat(options)


def arguments_of(args: argparse.Namespace) -> list[str]:
    """Return the arguments that the chat of a window is started with: this command's without those of the page."""
    given = vars(args) | {"devices": None if args.devices is None else ",".join(args.devices)}
    names = ("endpoint", "system", "devices", "context", "split", "head", "kv", "draft")
    options = [f"--{name}={given[name]}" for name in names if given[name] is not None]
    return options if args.model is None else [*options, "--", args.model]


def _serve_page(arguments: list[str], port: int) -> int:
    try:
        from qlocal.chat.web import serve_page  # textual-serve, which few have
    except ModuleNotFoundError as error:
        raise QLocalError(
            f"the chat in a browser needs {error.name}, which is not installed", hint="pip install 'qlocal[web]'"
        ) from error

    def announce(url: str) -> None:
        print(f"Open {url} in a browser of this machine; whoever knows this address can read and write your chats.")
        print("Ctrl-C ends it.", flush=True)

    try:
        asyncio.run(serve_page(arguments, port, announce))
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        raise QLocalError(f"port {port} of the loopback cannot be used: {error.strerror}") from error
    return 0
