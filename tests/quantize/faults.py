"""Quantize under injected faults: `python -m tests.quantize.faults` with the shim preloaded prints what came of each.

A process that has imported everything forks for every fault, so that one takes a fraction of a second. A run that ends
with 0 must have written the right bytes; after any other the same command must end well, with the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import torch

import quantize.pipeline  # noqa: F401  (what a run imports, imported once)
from quantize.cli import main as quantize_main
from tests import tiny

MODES = {"full": 1, "failed": 2, "short": 3, "killed before": 4, "killed after": 5}
SCENARIOS = {
    "rounding": ["--format", "awq,gguf", "--type", "q4_0", "--rtn", "--no-verify"],
    "calibrated": ["--format", "gptq", "--samples", "4", "--seq-len", "32", "--no-verify"],
}
REPORTS = {"README.md", "quantization_report.json"}
UNHANDLED = 99


def content(out: Path) -> dict[str, str]:
    """Return the hashes of all files but the reports, which hold timings."""
    files = [p for p in out.rglob("*") if p.is_file() and p.name not in REPORTS and p.suffix not in (".md", ".html")]
    wanted = [p for p in files if not (p.suffix == ".json" and p.with_suffix(".gguf").exists())]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in wanted}


def run(arguments: list[str], at: int, mode: int) -> tuple[int, int, str]:
    """Run quantize in a fork with the fault armed; return its exit status (negative: a signal), calls and errors."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        code, errors = UNHANDLED, io.StringIO()
        sys.stdout, sys.stderr = io.StringIO(), errors
        shim = ctypes.CDLL(None)
        shim.fault_arm(ctypes.c_long(at), mode)
        try:
            code = quantize_main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            seen = shim.fault_seen()
            shim.fault_arm(ctypes.c_long(0), 0)
            os.write(write_end, json.dumps([seen, errors.getvalue()[-2000:]]).encode())
            os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen, errors_text = json.loads(told) if told else (0, "")
    return status, seen, errors_text


def judge(source: Path, folder: Path, options: list[str], at: int, mode: int, expected: dict[str, str]) -> str:
    """Inject one fault and return what came of it: `continued`, `completed`, or what is wrong."""
    out = folder / "out"
    arguments = [str(source), "--out", str(out), *options]
    status, _, errors = run(arguments, at, mode)
    if status == 0:
        return "completed" if content(out) == expected else f"WRONG SUCCESS: {errors}"
    if status not in (2, -9) or "Traceback" in errors:
        return f"UNHANDLED ({status}): {errors}"
    if status == 2 and not errors.strip().split("\n")[-1].startswith("quantize: "):
        return f"NO SENTENCE: {errors}"
    again, _, errors = run(arguments, 0, 0)
    left_over = [path for path in (folder / "out.partial").rglob("*") if path.is_file()]
    if again != 0 and out.exists() and content(out) == expected and not left_over:
        return "completed"  # everything had been placed and tidied up; it says that the result is there
    if again != 0:
        return f"NOT CONTINUED ({again}): {errors}"
    if content(out) != expected:
        return "OTHER BYTES after the restart"
    return "continued" if not (folder / "out.partial").exists() else "LEFT-OVERS after the restart"


def main() -> int:
    parser = argparse.ArgumentParser(description="Inject faults into quantize.")
    parser.add_argument("--every", type=int, default=1, help="inject at every Nth call only")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for each scenario")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Counter[str]] = {}
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        source = tiny.write_checkpoint(Path(name) / "m", "qwen2", {"num_hidden_layers": 1})
        for scenario in args.scenario or SCENARIOS:
            options = SCENARIOS[scenario]
            whole = Path(name) / "whole"
            whole.mkdir()
            status, calls, errors = run([str(source), "--out", str(whole / "out"), *options], 0, MODES["failed"])
            assert status == 0, errors
            expected = content(whole / "out")
            shutil.rmtree(whole)
            faults = [(mode, at) for at in range(1, calls + 1, args.every) for mode in MODES]
            Random(0).shuffle(faults)  # so that a run that is cut short has seen some of everything
            until = time.monotonic() + args.seconds
            for mode_name, at in faults:
                if time.monotonic() > until:
                    break
                folder = Path(tempfile.mkdtemp(dir=name))
                outcome = judge(source, folder, options, at, MODES[mode_name], expected)
                tally = results.setdefault(f"{scenario}, {mode_name}", Counter(calls=calls))
                tally[outcome.split(":")[0]] += 1
                if outcome not in ("completed", "continued"):
                    wrong.append(f"{scenario}, {mode_name} at call {at} of {calls}: {outcome}")
                shutil.rmtree(folder)
    print(json.dumps({"results": {key: dict(tally) for key, tally in results.items()}, "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
