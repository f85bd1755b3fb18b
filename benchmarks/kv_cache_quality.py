"""What does rounding keys and values cost? Mean KL of the next token from the same model over a float16 cache.

    python benchmarks/kv_cache_quality.py MODEL --text FILE [--length 512] [--chunks 1] [--ways ...] [--types ...]

Weights and arithmetic are float32 throughout, so that the cache is the only difference. The ways: `plain` rounds
groups of 32 by their largest value, `rotated` does it after a Hadamard rotation of the head, `bias out` does it to keys
without their bias, `both` is the two together, `ours` is the cache that `--kv` gives. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qlocal.cache import packed
from qlocal.engine.evaluate import tokens_of
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.layers import kv_conditioning
from qlocal.layers.attention import Attend, causal
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_model
from qlocal.metrics import ROWS, Attention, over_cache, take_chunks
from qlocal.plan import Plan, make_plan

WAYS = ("plain", "rotated", "bias out", "both", "ours")
TYPES = ("q8,f16", "f16,q8", "q8", "q4,f16", "f16,q4", "q8,q4", "q4")
_LEVELS = {"q8": 127, "q4": 7}


def rounded(x: Tensor, kind: str) -> Tensor:
    """Return (T, Hk, Dh) rounded to float16, or in even steps of the largest value of every group."""
    if kind == "f16":
        return x.half().float()
    groups = torch.unflatten(x, -1, (-1, packed.GROUP))
    scales = (groups.abs().amax(-1, keepdim=True) / _LEVELS[kind]).half().float().clamp_min(1e-12)
    return (groups / scales).round().mul(scales).flatten(-2)


def simple(decoder: Decoder, way: str, types: tuple[str, str]) -> Attention:
    """Return attention over keys and values that one of the simple ways has rounded."""
    is_rotated, is_bias_out = way in ("rotated", "both"), way in ("bias out", "both")

    def through(x: Tensor, kind: str) -> Tensor:
        return packed.rotate(rounded(packed.rotate(x), kind)) if is_rotated and kind != "f16" else rounded(x, kind)

    def attention(length: int) -> Callable[[int], Attend]:
        rotation, whole = decoder.rotary.at(torch.arange(length)), causal([length])

        def of_layer(index: int) -> Attend:
            bias = kv_conditioning.key_bias(decoder.layers[index]) if is_bias_out and types[0] != "f16" else None

            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                kept_out = 0.0 if bias is None else rotation.apply(bias.expand(k.shape))
                return whole(q, through(k - kept_out, types[0]) + kept_out, through(v, types[1]))

            return attend

        return of_layer

    return attention


def of_cache(decoder: Decoder, plan: Plan) -> Attention:
    """Return attention over the cache of a plan."""
    return over_cache(kv_conditioning.storage_for(decoder, plan), plan.block_size)


class Distances:
    """The hidden states over a float16 cache, kept for all ways."""

    def __init__(self, decoder: Decoder, chunks: Sequence[Sequence[int]], attention: Attention) -> None:
        self._decoder = decoder
        self._chunks = [torch.tensor(list(chunk)) for chunk in chunks]
        self._reference = [self._hidden_states(chunk, attention) for chunk in self._chunks]

    def measure(self, attention: Attention) -> tuple[float, float]:
        """Return mean KL in nats and the share of tokens with the same first choice."""
        total, same, count = 0.0, 0, 0
        for chunk, reference in zip(self._chunks, self._reference, strict=True):
            hidden = self._hidden_states(chunk, attention)
            for rows in range(0, len(chunk), ROWS):
                log_p, log_q = (
                    self._decoder.logits(x[rows : rows + ROWS]).log_softmax(-1) for x in (reference, hidden)
                )
                total += float((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0).sum())
                same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
            count += len(chunk)
        return total / count, same / count

    def _hidden_states(self, chunk: Tensor, attention: Attention) -> Tensor:
        return self._decoder.forward(chunk, torch.arange(len(chunk)), attention(len(chunk)))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--types", nargs="+", default=TYPES)
    args = parser.parse_args()
    dispatch.set_threads(args.threads)
    checkpoint = open_checkpoint(args.model)
    chunks = take_chunks(tokens_of(checkpoint, [args.text]), args.chunks, args.length)

    def plan(kv: str) -> Plan:
        return make_plan(checkpoint, ["cpu"], args.length, slots=1, dtype="float32", kv=kv)

    decoder = load_model(checkpoint, plan("f16"))
    distances = Distances(decoder, chunks, of_cache(decoder, plan("f16")))
    print(f"{args.model.name}, {args.chunks} x {args.length} tokens of {args.text.name}\n", flush=True)
    print(f"| K, V | {' | '.join(args.ways.split(','))} |\n|---|{'---:|' * len(args.ways.split(','))}", flush=True)
    for kv in args.types:
        print(f"| {kv} |", end="", flush=True)
        for way in args.ways.split(","):
            kinds = (kv.split(",")[0], kv.split(",")[-1])
            kl, top1 = distances.measure(of_cache(decoder, plan(kv)) if way == "ours" else simple(decoder, way, kinds))
            print(f" {kl:.1e} ({top1:.1%}) |", end="", flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
