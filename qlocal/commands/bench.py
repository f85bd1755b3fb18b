"""`qlocal bench`: how fast the kernels are, or one model; each beside the rate at which this machine reads memory."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from qlocal import catalog
from qlocal.commands.options import add_engine, add_model, engine_options, human_bytes, positive
from qlocal.config import NO_DRAFT, STORED
from qlocal.errors import UsageError
from qlocal.protocol import Load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, optional=True)
    parser.description = "Measure one model, or without MODEL every kernel."
    kernels = parser.add_argument_group("without MODEL")
    kernels.add_argument("--storages", metavar="LIST", help="awq, bf16, q4_k, ... separated by commas; default: all")
    kernels.add_argument("--tokens", metavar="LIST", default="1,8,64", help="tokens a product; default: 1,8,64")
    kernels.add_argument("--rows", type=positive, default=2048, help="rows of the weight")
    kernels.add_argument("--columns", type=positive, default=8192, help="columns of the weight, a multiple of 256")
    model = parser.add_argument_group("with MODEL")
    model.add_argument("--prompt-tokens", type=positive, default=512, metavar="N")
    model.add_argument("--decode-tokens", type=positive, default=64, metavar="N")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--json", action="store_true")
    add_engine(parser)


def run(args: argparse.Namespace) -> int:
    return _bench_kernels(args) if args.model is None else _bench_model(args)


def _bench_model(args: argparse.Namespace) -> int:
    options, settings = engine_options(args)
    path = catalog.resolve(args.model, settings.home)
    from qlocal.engine import bench  # torch

    # What the made-up prompt repeats says nothing of texts: guesses only where they are asked for.
    draft = NO_DRAFT if options.draft is None else catalog.resolve_draft(options.draft, settings.home)
    max_context = options.max_context or args.prompt_tokens + args.decode_tokens + 1
    load = Load(
        path=str(path),
        devices=list(options.devices),
        max_context=max_context,
        slots=1,
        dtype=options.dtype,
        kernels=options.kernels,
        threads=options.threads,
        max_memory=options.max_memory,
        head=options.head or STORED,
        kv=options.kv,
        offload=options.offload,
        prefill_chunk=options.prefill_chunk,
        card_reserve=options.card_reserve,
        split=options.split,
        draft=draft,
    )
    found = bench.run(load, bench.Lengths(args.prompt_tokens, args.decode_tokens, args.repeats))
    print(json.dumps(found) if args.json else "\n".join(_model_lines(found)))
    return 0


def _model_lines(found: dict[str, Any]) -> list[str]:
    def rate(kind: str) -> str:
        low, high = found[f"{kind}_spread"]
        return f"{found[f'{kind}_tokens_per_s']:.1f} tokens/s ({low:.1f} to {high:.1f})"

    read = found["read_bytes_per_s"] / 1e9
    return [
        f"loaded  {human_bytes(found['loaded_bytes'])} in {found['load_s']:.1f} s{_split(found)}",
        f"prompt  {rate('prompt')}, {found['prompt_tokens']} tokens",
        f"decode  {rate('decode')}, {found['decode_tokens']} tokens{_guesses(found)}",
        f"limit   memory reads at {read:.1f} GB/s; decoding reaches {found['decode_share']:.0%} of it",
    ]


def _guesses(found: dict[str, Any]) -> str:
    drafted, accepted = found["drafted_tokens"], found["accepted_tokens"]
    return f"; {accepted} of {drafted} guessed tokens were right" if drafted else ""


def _split(found: dict[str, Any]) -> str:
    devices = found["devices"]
    return f", {found['split']} split over {', '.join(devices)}" if len(devices) > 1 else ""


def _bench_kernels(args: argparse.Namespace) -> int:
    tokens = _numbers(args.tokens)
    if args.columns % 256:
        raise UsageError(f"--columns {args.columns} is no multiple of 256")
    from qlocal.kernels import benchmark, dispatch  # torch

    known = benchmark.DEFAULT_STORAGES
    storages = tuple(args.storages.split(",")) if args.storages else known
    if unknown := [name for name in storages if name not in known]:
        raise UsageError(f"--storages: '{unknown[0]}' is unknown", hint=f"Known: {', '.join(known)}.")
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
