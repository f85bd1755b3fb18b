"""How fast is a token with a long context behind it? Its share of what reading weights and cache would allow.

    python benchmarks/long_decode.py MODEL [--contexts 2048,32768] [--kv "f16 q8 q4"] [--repeats 9]

The cache is made up, since reading a real prompt would take minutes and cost the same afterwards. A step computes one
token behind so many, logits included; the limit is its bytes, weights and the cache's share of the context, at the rate
at which this machine reads memory, measured before and after. Also: how long steps of 4 and 8 tokens take, which check
guesses. Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from pathlib import Path

import torch

from qlocal.devices import default_threads
from qlocal.engine.bench import bytes_per_token
from qlocal.engine.model_runner import ModelRunner
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.kernels.benchmark import read_bandwidth
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.layers.paged_attention import TokenRun
from qlocal.plan import make_plan


def step_s(runner: ModelRunner, tokens: int, past: int, blocks: list[int], repeats: int) -> float:
    """Return the median time of a step of so many tokens."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        runner.forward(list(range(tokens)), [TokenRun(tokens, past, blocks)])
        runner.logits(range(tokens))
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--contexts", default="2048,32768")
    parser.add_argument("--kv", default="f16 q8 q4")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    dispatch.set_threads(args.threads or default_threads())
    checkpoint, contexts = open_checkpoint(args.model), [int(n) for n in args.contexts.split(",")]
    weights = bytes_per_token(checkpoint)
    print(f"{args.model.name}, memory reads at {read_bandwidth() / 1e9:.1f} GB/s\n")
    print("| cache | context | bytes a token | ms a token | tokens/s | of the limit | 4 tokens | 8 tokens |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for kv in args.kv.split():
        plan = make_plan(checkpoint, ["cpu"], max(contexts) + 8, slots=1, kv=kv)
        decoder = load_model(checkpoint, plan)
        storage = storage_for(decoder, plan)
        for block in range(plan.num_blocks):
            for part in storage.block_parts(block):
                part.fill_(block % 7)  # small numbers in every type, and pages that are there
        runner, blocks = ModelRunner(decoder, storage, plan.block_size), list(range(plan.num_blocks))
        for context in contexts:
            taken = [step_s(runner, tokens, context - tokens, blocks, args.repeats) for tokens in (1, 4, 8)]
            num_bytes = weights + storage.block_bytes / plan.block_size * context
            share = num_bytes / taken[0] / read_bandwidth()
            print(
                f"| {kv} | {context:,} | {num_bytes / 1e6:.0f} MB | {taken[0] * 1e3:.1f} | {1 / taken[0]:.1f} | "
                f"{share:.0%} | {taken[1] / taken[0]:.2f} x | {taken[2] / taken[0]:.2f} x |",
                flush=True,
            )
        del runner, decoder, storage
        gc.collect()


if __name__ == "__main__":
    main()
