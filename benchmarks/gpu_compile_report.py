"""What does every Triton kernel take of a card: shared memory, registers, spills? Needs triton, but no card.

python benchmarks/gpu_compile_report.py [--arch 86 120] [--kernel gemv] [--what q4_k] [--tokens 512] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from qlocal.kernels.triton import forms
from qlocal.kernels.triton.compile_report import ARCHITECTURES, report

FORMS = [*forms.product_forms(), *forms.int8_forms(), *forms.dense_forms(), *forms.step_forms()]
KERNELS = list(dict.fromkeys(form.name for form in FORMS))


def main() -> None:
    options = _options()
    chosen = [form for form in FORMS if form.name in options.kernel and options.what in form.what]
    chosen = [form for form in chosen if options.tokens in (None, form.num_tokens)]
    rows = []
    print(f"{'kernel':12} {'form':44} tokens   arch    warps  shared  registers  spilled  int8 mma")
    for usage in report(chosen, options.arch):
        print(
            f"{usage.name:12} {usage.what:44} {usage.num_tokens:6}   sm_{usage.architecture:<5} {usage.num_warps:5} "
            f"{usage.shared_bytes:7} {usage.registers:10} {usage.spilled_bytes:8} {usage.int8_products:9}",
            flush=True,
        )
        rows.append(asdict(usage))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=list(ARCHITECTURES))
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--what", default="", help="part of a form's name, as q4_k or 'heads of 64'")
    parser.add_argument("--tokens", type=int, help="forms for so many alone")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
