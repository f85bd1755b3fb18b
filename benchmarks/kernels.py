"""How fast are the kernels, against the reference and against what this machine reads from memory?

python benchmarks/kernels.py [--json FILE] [--threads N] [--storage q4_k ...] [--tokens 1 8 64]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from qlocal.kernels import benchmark, dispatch


def main() -> None:
    options = _options()
    dispatch.set_threads(options.threads)
    rows = benchmark.run(options.storage, options.tokens, options.rows, options.columns, repeats=options.repeats)
    print(f"{options.threads} threads, memory read {rows[0].read_bytes_per_s / 1e9:.1f} GB/s")
    peaks = benchmark.peak_operations()
    if peaks is not None:
        print(f"at most {peaks.int8 / 1e12:.2f} TOPS of int8, {peaks.bf16 / 1e12:.2f} of bf16")
    print(f"weight ({options.rows}, {options.columns}), medians of {options.repeats}")
    print("storage  tokens kernel    native ms    ref ms  faster   GB/s  share   TOPS")
    for row in rows:
        print(
            f"{row.storage:8} {row.tokens:6} {row.kernel:9} {row.native_s * 1e3:9.3f} {row.reference_s * 1e3:9.2f} "
            f"{row.speedup:6.1f}x {row.bytes_per_s / 1e9:6.2f} {row.share:6.0%} "
            f"{row.operations_per_s / 1e12:6.3f}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--storage", nargs="+", default=list(benchmark.DEFAULT_STORAGES))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
