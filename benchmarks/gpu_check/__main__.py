"""python -m benchmarks.gpu_check [--sections values,few,...] [--rehearse] [--out FOLDER]

Ends with 0 when all values are right, 1 when not, 2 without a card.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

SECTIONS = ("values", "few", "many", "decoding", "tune", "quantize", "exchange", "peers", "models")
_RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    options = _options()
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print("gpu-check needs an NVIDIA card, and torch finds none here; --rehearse runs it without.", file=sys.stderr)
        return 2
    with torch.inference_mode():
        return _check(options)


def _check(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu_check import decoding, exchanging, peers, place, products, quantizing, results, tune, values

    where = place.rehearsal() if options.rehearse else place.Place(torch.device("cuda", 0), is_rehearsal=False)
    runs = {
        "values": values.run,
        "few": products.few,
        "many": products.many,
        "decoding": decoding.run,
        "tune": tune.run,
        "quantize": quantizing.run,
        "exchange": exchanging.run,
        "peers": peers.products,
        "models": peers.models,
    }
    machine, failed = _machine(where.name), 0
    for name in options.sections:
        table = runs[name](where)
        print(table.markdown(), flush=True)
        failed += len(table.failed)
        path = results.save(options.out, where.name, machine | {"read GB/s": where.read_gb_per_s}, {name: table})
    print(f"written to {path} and {path.with_suffix('.md').name}")
    return 1 if failed else 0


def _machine(name: str) -> dict[str, Any]:
    import torch
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    return {"card": name, "CUDA": str(torch.version.cuda), **versions}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", default=",".join(SECTIONS), help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, interpreted on the CPU")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    options = parser.parse_args()
    options.sections = [name for name in options.sections.split(",") if name]
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown or not options.sections:
        parser.error(f"there is no section '{''.join(unknown[:1])}': {', '.join(SECTIONS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
