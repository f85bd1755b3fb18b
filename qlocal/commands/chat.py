"""`qlocal chat`: the terminal program."""

from __future__ import annotations

import argparse
import os

from qlocal.commands.options import add_draft, add_head, add_kv, add_model, add_split, devices, positive
from qlocal.config import ChatOptions, load_settings


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
    parser.epilog = "The token of --endpoint is read from QLOCAL_TOKEN: arguments can be seen by other users."


def run(args: argparse.Namespace) -> int:
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
