"""What does every Triton kernel take of a card: shared memory, registers, spills? Needs triton, but no card.

python benchmarks/gpu_compile_report.py [--arch 86 120] [--kernel gemv] [--kind q4_k ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from qlocal.kernels.triton import compile_report
from qlocal.kernels.triton.layout import Kind


def main() -> None:
    options = _options()
    chosen = [v for v in compile_report.variants() if v.kernel in options.kernel and v.kind in options.kind]
    rows = []
    print("kernel type         tokens x        scales   arch    warps  shared  registers  spilled")
    for usage in compile_report.report(chosen, options.arch):
        variant = usage.variant
        x_dtype, scale_dtype = (str(dtype).removeprefix("torch.") for dtype in (variant.x_dtype, variant.scale_dtype))
        print(
            f"{variant.kernel:6} {variant.type_name:12} {variant.num_tokens:6} {x_dtype:8} {scale_dtype:8} "
            f"sm_{usage.architecture:<5} {usage.num_warps:5} {usage.shared_bytes:7} {usage.registers:10} "
            f"{usage.spilled_bytes:8}",
            flush=True,
        )
        rows.append(asdict(usage) | {"variant": asdict(variant) | {"x_dtype": x_dtype, "scale_dtype": scale_dtype}})
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=list(compile_report.ARCHITECTURES))
    parser.add_argument("--kernel", nargs="+", choices=("gemv", "gemm"), default=("gemv", "gemm"))
    parser.add_argument("--kind", nargs="+", type=Kind, choices=list(Kind), default=list(Kind))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
