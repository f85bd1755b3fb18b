"""`qlocal serve`: the HTTP server in the foreground."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from qlocal.commands.options import add_engine, add_model, engine_options, port, seconds
from qlocal.config import ServeOptions
from qlocal.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    place = parser.add_argument_group("where to listen (default: this user's private Unix socket)")
    place.add_argument("--port", type=port, help="a TCP port of the loopback, with a token; 0 takes a free one")
    place.add_argument("--host", default="127.0.0.1", help="127.0.0.1, localhost or ::1")
    place.add_argument("--socket", type=Path, help="another path for the Unix socket")
    place.add_argument("--token-file", type=Path, help="the file with the token; made when it is missing")
    place.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL", help="a web page's origin that may use it"
    )
    parser.add_argument("--idle-exit", type=seconds, metavar="SECONDS", help="end when nobody asked for so long")
    parser.add_argument("--verbose", action="store_true", help="log more")
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    if args.port is not None and args.socket is not None:
        raise UsageError("--port and --socket exclude each other")
    from qlocal.server.serve import run_server  # pydantic and uvicorn: a quarter of a second

    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    engine, _ = engine_options(args)
    options = ServeOptions(
        model=args.model,
        socket=args.socket,
        host=args.host,
        port=args.port,
        token_file=args.token_file,
        allowed_origins=tuple(args.allow_origin),
        idle_exit_s=args.idle_exit,
        engine=engine,
    )
    run_server(options, announce=lambda line: print(line, flush=True))
    return 0
