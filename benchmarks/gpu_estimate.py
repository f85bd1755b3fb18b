"""What would two consumer cards decode, and read? Computed from a plan's bytes and the makers' figures, not measured.

python benchmarks/gpu_estimate.py [MODEL] [--efficiency 0.88] [--reduce-us 10] [--fixed-us 800] [--json FILE]

A token of a tensor split takes the slower card's bytes at a share of its bandwidth, two sums over the cards a layer,
and what is left between the kernels; of a layer split, the bytes of both cards one after another and one hop.
A prompt takes a share of the cards' arithmetic; in parts, the second card begins when the first has done one.
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
# TFLOP/s of 16 bits added up in float32, and TOP/s of int8, both dense: the makers' figures.
ARITHMETIC = {"RTX 3090": (71, 284), "RTX 4090": (165, 661), "RTX 5090": (210, 838)}
LAYER_WEIGHTS, WIDTH, CONTEXT_WIDTH = 70.2e9, 8192, 80 * 64 * 128
"""Of Qwen2.5-72B: weights of all layers, the residual stream, and what a pair of tokens costs twice in attention."""
PART_TOKENS, MAX_PARTS = 128, 8
"""As in layers/card_decoder.py."""
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
    prompts = [row for card in CARDS for row in _prompt_rows(options, card[0])]
    print(
        f"\n{'cards':12} {'step':>6} {'parts':>6} {'products':9} {'tokens/s, layer split':>22} {'both cards work':>16}"
    )
    for row in prompts:
        print(
            f"{row['cards']:12} {row['step']:6} {row['parts']:6} {row['products']:9} {row['tokens_per_s']:22.0f} "
            f"{100 * row['share']:14.0f} %"
        )
    if options.json is not None:
        options.json.write_text(
            json.dumps({"is": "computed", "from": _assumptions(options), "rows": rows, "prompts": prompts}, indent=1)
        )


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


def _prompt_rows(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Return what a prompt of 8,192 tokens takes, in steps that go through two cards whole or in parts."""
    rows = []
    for products, peak, share in zip(("16 bits", "int8"), ARITHMETIC[name], (0.7, 0.5), strict=True):
        for step in (512, 2048):
            # On average a token looks back at half of the prompt; attention stays in 16 bits.
            attention = 4 * CONTEXT_WIDTH * 4096 / (0.7e12 * ARITHMETIC[name][0])
            whole = step * (2 * LAYER_WEIGHTS / (share * 1e12 * peak) + attention) / 2  # of one card
            for parts in (1, min(MAX_PARTS, step // PART_TOKENS)):
                hop = step / parts * WIDTH * 4 / (1e9 * options.link_gb_per_s)
                seconds = (parts + 1) * (whole / parts + hop)
                figures = {"tokens_per_s": step / seconds, "share": (parts - 1) / (parts + 1)}
                rows.append({"cards": f"2 x {name[4:]}", "step": step, "parts": parts, "products": products, **figures})
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
        f"{options.reduce_us:g} us a sum over the cards, {options.fixed_us:g} us a token between kernels; "
        f"prompts of 8,192: products at 70% of the arithmetic in 16 bits, 50% in int8, "
        f"{options.link_gb_per_s:g} GB/s a hop"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-72b-instruct", help="a name of the catalogue, or a path")
    parser.add_argument("--efficiency", type=float, default=0.88, help="share of bandwidth that kernels reach: assumed")
    parser.add_argument("--reduce-us", type=float, default=10.0, help="a sum of 16 KiB over both cards: assumed")
    parser.add_argument("--fixed-us", type=float, default=800.0, help="norms, launches and sampling: assumed")
    parser.add_argument("--link-gb-per-s", type=float, default=12.0, help="from card to card: assumed")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
