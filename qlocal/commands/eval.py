"""`qlocal eval`: perplexity on texts, and the distance to a reference model."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from qlocal import catalog
from qlocal.clean import clean_line
from qlocal.commands.options import add_head, add_kv, add_model, devices, human_bytes, positive, readable_file
from qlocal.config import STORED, load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--text", type=readable_file, action="append", required=True, metavar="FILE", help="may be given several times"
    )
    parser.add_argument("--reference", metavar="MODEL", help="the model to measure the distance to")
    parser.add_argument("--chunks", type=positive, default=16, metavar="N", help="how many pieces of text; default 16")
    parser.add_argument("--length", type=positive, default=512, metavar="TOKENS", help="tokens of a piece; default 512")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--devices", type=devices, metavar="LIST", help="cpu, cuda:0, ... separated by commas")
    parser.add_argument("--kernels", choices=("auto", "reference", "int8"), default="auto")
    parser.add_argument("--threads", type=positive, metavar="N")
    add_head(parser)
    add_kv(parser)
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    settings = load_settings({"devices": args.devices, "threads": args.threads})
    model = catalog.resolve(args.model, settings.home)
    reference = None if args.reference is None else catalog.resolve(args.reference, settings.home)
    from qlocal.engine import evaluate  # torch

    measured = evaluate.Measured(
        texts=args.text,
        num_chunks=args.chunks,
        length=args.length,
        dtype=args.dtype,
        devices=settings.devices,
        kernels=args.kernels,
        threads=settings.threads,
        head=args.head or STORED,
        kv=args.kv,
    )
    result = evaluate.run(model, measured, reference, _show_progress if sys.stderr.isatty() else None)
    print(json.dumps(result) if args.json else "\n".join(_lines(result)))
    return 0


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\rchunk {done} of {total}", end=end, file=sys.stderr, flush=True)


def _lines(result: dict[str, Any]) -> list[str]:
    """Return name and value a line; what the measures are called is theirs to say."""
    shown = {name: human_bytes(value) if name.endswith("bytes") else value for name, value in result.items()}
    return [f"{name:24} {clean_line(_value(value))}" for name, value in shown.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_value, value)) if isinstance(value, (list, tuple)) else str(value)
