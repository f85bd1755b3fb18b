"""`qlocal serve`: the HTTP server in the foreground."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qlocal import catalog
from qlocal.commands.options import add_engine, add_model, engine_options, port, positive, seconds
from qlocal.config import EngineOptions, Nodes, ServeOptions, Settings
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
    nodes = parser.add_argument_group("over several machines, each with these options and its own --node-rank")
    nodes.add_argument("--nodes", type=positive, metavar="N", help="how many machines hold the model together")
    nodes.add_argument("--node-rank", type=int, default=0, metavar="R", help="which of them this is; 0 serves")
    nodes.add_argument("--rendezvous", metavar="HOST:PORT", help="where they meet, a free port of node 0")
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
    engine, settings = engine_options(args)
    engine = _with_nodes(engine, args)
    if engine.nodes is not None and engine.nodes.rank > 0:
        return _run_node(engine, args.model, settings)
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


def _run_node(engine: EngineOptions, model: str, settings: Settings) -> int:
    from qlocal.server.node import run_node  # pydantic, see above

    run_node(catalog.resolve(model, settings.home), engine, announce=lambda line: print(line, flush=True))
    return 0


def _with_nodes(engine: EngineOptions, args: argparse.Namespace) -> EngineOptions:
    """Return the options with the machines that --nodes or torchrun name."""
    nodes = _nodes(args) if args.nodes is not None else _torchrun_nodes(os.environ)
    if nodes is None or nodes.count == 1:
        return engine
    if args.model is None:
        raise UsageError("several nodes load the MODEL that each is given", hint="Name it.")
    if engine.split == "layer":
        raise UsageError("--split layer is for the devices of one machine", hint="Several nodes take --split tensor.")
    if args.nodes is None and len(engine.devices) > 1:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))  # torchrun starts a process a device
        engine = replace(engine, devices=(engine.devices[local_rank % len(engine.devices)],))
    return replace(engine, nodes=nodes)


def _nodes(args: argparse.Namespace) -> Nodes:
    if args.rendezvous is None:
        raise UsageError("--nodes needs --rendezvous HOST:PORT", hint="An address of node 0 that the others reach.")
    host, _, number = args.rendezvous.rpartition(":")
    if not host or not number.isdecimal() or not 0 < int(number) < 1 << 16:
        raise UsageError(f"--rendezvous '{args.rendezvous}' is no HOST:PORT")
    if not 0 <= args.node_rank < args.nodes:
        raise UsageError(f"--node-rank {args.node_rank} is not from 0 to {args.nodes - 1}")
    return Nodes(args.nodes, args.node_rank, host.strip("[]"), int(number))


def _torchrun_nodes(environment: Mapping[str, str]) -> Nodes | None:
    """Return what torchrun tells its processes, or None outside of it. Every process counts as a node."""
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names):
        return None
    count, rank, host, number = (environment[name] for name in names)
    return Nodes(
        int(count),
        int(rank),
        host,
        int(number),
        has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        prefix=f"qlocal/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}",
    )
