"""Does the cache of a 72B model at 131,072 tokens hold what the plan says, and work? A few layers, without a card.

    python benchmarks/full_context.py [--layers 4] [--kv "q8 q4"]

The geometry of Qwen2.5-72B's attention (64 heads of 128, 8 of keys) with a made-up narrow model around it. The cache is
allocated for the whole context and filled with what a chunk of prompt wrote, then a token is decoded behind 131,071
others and a chunk of prompt is read at the end. Prints what was planned, what was allocated and what the system says is
resident, the time of attention a layer, and how far the logits are from those of the reference kernels. On a CPU this
attention is arithmetic: 4.3 GFLOP a token and layer over some 200 MB.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qlocal.cache.storage import KVStorage
from qlocal.devices import default_threads
from qlocal.engine.model_runner import ModelRunner
from qlocal.kernels import dispatch
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.layers.paged_attention import TokenRun
from qlocal.plan import make_plan
from tests.memory_checkpoint import MemoryCheckpoint, random_ids

CONTEXT, CHUNK = 131_072, 512
GEOMETRY = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": CONTEXT,
}


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return psutil.Process().memory_info().rss


def fill(storage: KVStorage, num_blocks: int, written: int) -> None:
    """Copy what the first blocks hold to all others, so that every page is there and every score is an ordinary one."""
    for block in range(written, num_blocks):
        for source, target in zip(storage.block_parts(block % written), storage.block_parts(block), strict=True):
            target.copy_(source)


def median_s(runner: ModelRunner, tokens: int, past: int, blocks: list[int], repeats: int) -> float:
    """Return the median time of a step without its logits."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        runner.forward(random_ids(300, tokens), [TokenRun(tokens, past, blocks)])
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kv", default="q8 q4")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    dispatch.set_threads(default_threads())
    checkpoint = MemoryCheckpoint("qwen2", GEOMETRY | {"num_hidden_layers": args.layers})
    print(f"{args.layers} layers at {CONTEXT:,} tokens\n")
    print("| cache | planned | allocated | resident | decode a layer | a chunk of 512 a layer | logits |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for kv in args.kv.split():
        plan = make_plan(checkpoint, ["cpu"], CONTEXT, slots=1, kv=kv)
        decoder = load_model(checkpoint, plan)
        before = resident()
        storage = storage_for(decoder, plan)
        runner, blocks = ModelRunner(decoder, storage, plan.block_size), list(range(plan.num_blocks))
        for past in range(0, 2048, CHUNK):
            runner.forward(random_ids(300, CHUNK, past), [TokenRun(CHUNK, past, blocks)])
        fill(storage, CONTEXT // plan.block_size, 2048 // plan.block_size)
        held = resident() - before
        decode_s = median_s(runner, 1, CONTEXT - 1, blocks, args.repeats) - median_s(runner, 1, 0, blocks, args.repeats)
        chunk_s = median_s(runner, CHUNK, CONTEXT - CHUNK, blocks, 1) - median_s(runner, CHUNK, 0, blocks, 1)
        allocated = storage.block_bytes * plan.num_blocks
        reference = ModelRunner(load_model(checkpoint, plan, "reference"), storage, plan.block_size)
        ends = []
        for one in (runner, reference):
            one.forward([7], [TokenRun(1, CONTEXT - 1, blocks)])
            ends.append(one.logits(range(1)).float())
        apart = (ends[0] - ends[1]).norm() / ends[1].norm()
        planned = sum(part.cache_bytes for part in plan.devices)
        print(
            f"| {kv} | {planned / 2**20:.1f} MiB | {allocated / 2**20:.1f} MiB | {held / 2**20:.1f} MiB | "
            f"{decode_s / args.layers * 1e3:.1f} ms | {chunk_s / args.layers:.1f} s | {float(apart):.1e} apart |",
            flush=True,
        )
        del runner, reference, decoder, storage
        gc.collect()


if __name__ == "__main__":
    main()
