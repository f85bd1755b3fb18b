"""What would two consumer cards decode? Computed from a plan's bytes, not measured.

python benchmarks/gpu_estimate.py [MODEL] [--efficiency 0.88] [--reduce-us 10] [--fixed-us 800] [--json FILE]

A token of a tensor split takes the slower card's bytes at a share of its bandwidth, two sums over the cards a layer,
and what is left between the kernels; of a layer split, the bytes of both cards one after another and one hop.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Name, GB/s of its memory (the makers' figures), GiB that are free beside a display.
CARDS = (("RTX 3090", 936, 23.2), ("RTX 4090", 1008, 23.2), ("RTX 5090", 1792, 31.0))
CONTEXTS = (0, 8192, 32768)
_HOP_US = 30


def main() -> None:
    options = _options()
    rows = [row for card in CARDS for split in ("tensor", "layer") for row in _rows(options, card, split)]
    print("computed, not measured: " + _assumptions(options))
    print(f"{'cards':12} {'split':7} {'context':>8} {'GB a token':>11} {'ms':>7} {'tokens/s':>9} {'share of both':>14}")
    for row in rows:
        print(
            f"{row['cards']:12} {row['split']:7} {row['context']:8} {row['gb_per_token']:11.1f} {row['ms']:7.1f} "
            f"{row['tokens_per_s']:9.1f} {100 * row['share']:13.0f} %"
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"is": "computed", "from": _assumptions(options), "rows": rows}, indent=1))


def _rows(options: argparse.Namespace, card: tuple[str, int, float], split: str) -> list[dict[str, Any]]:
    name, bandwidth, free = card
    plan = _plan(options.model, f"{free}GiB,{free}GiB", split)
    if plan is None:
        return []
    weights = [device["weight_bytes"] for device in plan["devices"]]
    # Of one token, in the layers that a device holds.
    cache = [device["cache_bytes"] / (plan["num_blocks"] * plan["block_size"]) for device in plan["devices"]]
    num_layers = len({layer for device in plan["devices"] for layer in device["layers"]})
    rows = []
    for context in CONTEXTS:
        if context > plan["max_context"]:
            continue
        read = [own + context * token for own, token in zip(weights, cache, strict=True)]
        rate = bandwidth * 1e9 * options.efficiency
        seconds = max(read) / rate + 2e-6 * num_layers * options.reduce_us if split == "tensor" else sum(read) / rate
        seconds += 1e-6 * (options.fixed_us + (_HOP_US if split == "layer" else 0))
        share = sum(read) / seconds / (2e9 * bandwidth)
        figures = {"gb_per_token": sum(read) / 1e9, "ms": 1e3 * seconds, "tokens_per_s": 1 / seconds, "share": share}
        rows.append({"cards": f"2 x {name[4:]}", "split": split, "context": context, **figures})
    return rows


def _plan(model: str, gpus: str, split: str) -> dict[str, Any] | None:
    """Return the plan as `qlocal plan` prints it, or None where the model does not fit."""
    command = [sys.executable, "-m", "qlocal.cli", "plan", model, "--gpus", gpus, "--split", split]
    command += ["--head", "q8_0", "--kv", "q8,q4", "--slots", "1", "--offload", "none", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    plan: dict[str, Any] | None = json.loads(result.stdout)["plan"] if result.stdout else None
    return plan


def _assumptions(options: argparse.Namespace) -> str:
    return (
        f"{options.model}, head Q8_0, keys q8 and values q4, kernels at {options.efficiency:.0%} of bandwidth, "
        f"{options.reduce_us:g} us a sum over the cards, {options.fixed_us:g} us a token between kernels"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-72b-instruct", help="a name of the catalogue, or a path")
    parser.add_argument("--efficiency", type=float, default=0.88, help="share of bandwidth that kernels reach: assumed")
    parser.add_argument("--reduce-us", type=float, default=10.0, help="a sum of 16 KiB over both cards: assumed")
    parser.add_argument("--fixed-us", type=float, default=800.0, help="norms, launches and sampling: assumed")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
