"""How long does a whole large model take? From what `quantize_large.py` measured for a layer, as a Markdown table.

    quantize_hours.py RESULT [RESULT ...] [--tokens 262144] [--layers 80]

A RESULT is the output of a run of one format (its last line counts). Two runs of one format with different numbers of
tokens give what a layer takes apart from its tokens; a format with one run takes over the share that another one's
two runs have shown. All that is printed is computed from these; what is assumed of machines stands below the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCALING = 0.8
"""Of every further core, beside those that were measured: memory and the products that one core does alone."""
GPU_BF16, GPU_FLOAT32 = 0.7 * 71e12, 0.6 * 35e12
"""Operations a second of an RTX 3090's data sheet, by the share that large products reach."""
DISK = 1e9
"""Bytes a second, both ways."""


@dataclass(frozen=True)
class Layer:
    """What a layer takes. fixed, a_token: processor seconds. bf16, float32: operations for `tokens`."""

    name: str
    fixed: float
    a_token: float
    tokens: int
    bf16: float
    float32: float
    gigabytes: float

    def processor_seconds(self, tokens: int) -> float:
        return self.fixed + self.a_token * tokens

    def gpu_seconds(self, tokens: int) -> float:
        """Products alone; those of the inputs grow with the tokens, those of the matrices do not."""
        return self.bf16 * tokens / self.tokens / GPU_BF16 + self.float32 / GPU_FLOAT32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=128 * 2048)
    parser.add_argument("--layers", type=int, default=80)
    arguments = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) for path in arguments.results]
    print("| result | memory (measured) | 2 cores, 24 GB | 16 cores, 64 GB | one 24 GB GPU, products alone |")
    print("|---|---:|---:|---:|---:|")
    for layer in layers_of(runs):
        spent, layers = layer.processor_seconds(arguments.tokens), arguments.layers
        hours = [layers * seconds / 3600 for seconds in (spent / 2, spent / (2 + 14 * SCALING))]
        gpu = layers * layer.gpu_seconds(arguments.tokens) / 3600
        cells = " | ".join(f"{value:.1f} h" for value in (*hours, gpu))
        print(f"| {layer.name} | {layer.gigabytes:.2f} GB | {cells} |")
    disk = 1.3 * runs[0]["source_bytes"] / runs[0]["layers"] * arguments.layers / DISK / 3600
    bf16, float32 = GPU_BF16 / 1e12, GPU_FLOAT32 / 1e12
    print(
        f"\n{arguments.tokens:,} tokens of calibration. Computed: cores beyond two count {SCALING:g} each; the GPU does"
    )
    print(f"{bf16:.0f} TFLOP/s of bf16 and {float32:.0f} of float32, and nothing else is counted there.")
    print(f"Reading the source and writing a result at {DISK / 1e9:g} GB/s is {disk:.2f} h of these.")


def layers_of(runs: list[dict[str, Any]]) -> list[Layer]:
    """Return a layer a format, of the run with the most tokens."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: -int(run["tokens"])):
        by_name.setdefault(f"{run['formats']} {run['arguments'].replace('--no-verify', '')}".strip(), []).append(run)
    share = next(_fixed(most, least) / most["processor_seconds_a_layer"] for most, *_, least in _pairs(by_name))
    layers = []
    for name, (most, *others) in by_name.items():
        spent = float(most["processor_seconds_a_layer"])
        fixed = _fixed(most, others[-1]) if others else share * spent
        operations = (float(most["bf16_operations_a_layer"]), float(most["float32_operations_a_layer"]))
        memory = most["peak_anonymous_bytes"] / 1e9
        layers.append(Layer(name, fixed, (spent - fixed) / most["tokens"], most["tokens"], *operations, memory))
    return layers


def _pairs(by_name: dict[str, list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    pairs = [runs for runs in by_name.values() if len(runs) > 1]
    if not pairs:
        raise SystemExit("one format needs two runs, with different numbers of tokens")
    return pairs


def _fixed(most: dict[str, Any], least: dict[str, Any]) -> float:
    """Return the processor seconds of no tokens at all."""
    slope = (most["processor_seconds_a_layer"] - least["processor_seconds_a_layer"]) / (
        most["tokens"] - least["tokens"]
    )
    return float(most["processor_seconds_a_layer"] - slope * most["tokens"])


if __name__ == "__main__":
    main()
