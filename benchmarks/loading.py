"""How fast does a model load, as a share of what the disk reads, and how much faster a second time?

    loading.py MODEL [MODEL ...] [--rounds 3]

A MODEL is a .gguf file or an AWQ or GPTQ folder. In every round the files are dropped from the page cache and read from
their first byte to their last, dropped again and loaded by a fresh process, and loaded once more while the system
remembers them. Loading is what `qlocal` reports: from opening the checkpoint to weights that are ready to be
multiplied. Medians, with (least to greatest) over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CHUNK_BYTES = 8 << 20


def files_of(model: Path) -> list[Path]:
    """Return the files whose bytes are weights."""
    return [model] if model.is_file() else sorted(model.glob("*.safetensors"))


def forget(files: list[Path]) -> None:
    """Ask the system to drop the files from its page cache."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_s(files: list[Path]) -> float:
    """Return the seconds that reading the files takes, one after another."""
    start, buffer = time.perf_counter(), bytearray(CHUNK_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def load_s(model: Path) -> float:
    """Return the seconds of loading in a fresh process."""
    command = [sys.executable, "-m", "qlocal.cli", "bench", str(model), "--json", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--prompt-tokens", "1", "--decode-tokens", "1"], check=True, capture_output=True, text=True
    )
    return float(json.loads(done.stdout)["load_s"])


def after_forgetting(files: list[Path], measure: Callable[[], float]) -> float:
    """Return what `measure` finds when the files are only on the disk."""
    forget(files)
    return measure()


def row(model: Path, rounds: int) -> str:
    """Measure one model; return its line of the table."""
    files = files_of(model)
    num_bytes = sum(path.stat().st_size for path in files)
    reads, colds, warms = [], [], []
    for _ in range(rounds):
        reads.append(after_forgetting(files, lambda: read_s(files)))
        colds.append(after_forgetting(files, lambda: load_s(model)))
        warms.append(load_s(model))
    rates = [num_bytes / seconds / 1e9 for seconds in reads]
    share = statistics.median(reads) / statistics.median(colds)
    cells = [model.name, f"{num_bytes:,}", spread(rates), spread(colds), f"{share:.0%}", spread(warms)]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| model | bytes | disk, GB/s | first load, s | of the disk's rate | second load, s |")
    print("|---|---:|---:|---:|---:|---:|")
    for model in options.models:
        print(row(model, options.rounds), flush=True)


if __name__ == "__main__":
    main()
