"""`qlocal bench`: how fast the kernels are, each beside the rate at which this machine reads memory."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from qlocal.commands.options import positive
from qlocal.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storages", metavar="LIST", help="awq, bf16, q4_k, ... separated by commas; default: all")
    parser.add_argument("--tokens", metavar="LIST", default="1,8,64", help="tokens a product; default: 1,8,64")
    parser.add_argument("--rows", type=positive, default=2048, help="rows of the weight")
    parser.add_argument("--columns", type=positive, default=8192, help="columns of the weight, a multiple of 256")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--threads", type=positive, metavar="N")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    tokens = _numbers(args.tokens)
    if args.columns % 256:
        raise UsageError(f"--columns {args.columns} is no multiple of 256")
    from qlocal.kernels import benchmark, dispatch  # torch

    storages = tuple(args.storages.split(",")) if args.storages else benchmark.DEFAULT_STORAGES
    if unknown := [name for name in storages if name not in benchmark.DEFAULT_STORAGES]:
        raise UsageError(
            f"--storages: '{unknown[0]}' is unknown", hint=f"Known: {', '.join(benchmark.DEFAULT_STORAGES)}."
        )
    if args.threads is not None:
        dispatch.set_threads(args.threads)
    rows = benchmark.run(storages, tokens, args.rows, args.columns, repeats=args.repeats)
    if args.json:
        extra = [{"speedup": r.speedup, "bytes_per_s": r.bytes_per_s, "share": r.share} for r in rows]
        print(json.dumps([asdict(row) | more for row, more in zip(rows, extra, strict=True)]))
        return 0
    print(f"weights of {args.rows} x {args.columns}; memory reads at {rows[0].read_bytes_per_s / 1e9:.1f} GB/s")
    print(f"{'weight':8} {'tokens':>6} {'kernel':>10} {'time':>10} {'GB/s':>7} {'of limit':>8} {'of reference':>12}")
    for row in rows:
        print(
            f"{row.storage:8} {row.tokens:>6} {row.kernel:>10} {row.native_s * 1e3:>7.2f} ms "
            f"{row.bytes_per_s / 1e9:>7.1f} {row.share:>8.0%} {row.speedup:>10.1f} x"
        )
    return 0


def _numbers(text: str) -> list[int]:
    try:
        return [positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--tokens: {error}") from error
