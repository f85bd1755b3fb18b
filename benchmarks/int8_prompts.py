"""What does rounding a prompt's tokens to 8 bits cost, as `--kernels int8` does on cards? Mean KL of the next token.

    python benchmarks/int8_prompts.py MODEL --text FILE [--length 512] [--chunks 2] [--groups 32 64 128]

The CPU stands in for a card: weights and arithmetic are float32, and the inputs of all linears that do not keep 16 bits
are rounded by the kernel's reference, so that nothing else differs. Every token is rounded, also those that a card
would decode one by one, which it does not round. Dense models only. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qlocal.engine.evaluate import tokens_of
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels import dispatch
from qlocal.kernels.reference.int8_tokens import rounded_tokens
from qlocal.layers.decoder import Decoder
from qlocal.layers.ffn import Ffn
from qlocal.layers.linear import QuantLinear
from qlocal.layers.loader import load_model
from qlocal.metrics import forward_logits, take_chunks
from qlocal.plan import make_plan

Rounding = Callable[[Tensor], Tensor]


def round_inputs(decoder: Decoder, rounding: Rounding) -> None:
    """Let the linears of all layers see their inputs rounded, but those that keep words."""
    for layer in decoder.layers:
        assert isinstance(layer.ffn, Ffn), "of dense models"
        for linear in (layer.qkv, layer.o, layer.ffn.gate_up, layer.ffn.down):
            if not linear.keeps_words:
                linear.gathered = _rounded(linear, rounding)  # type: ignore[method-assign]


def _rounded(linear: QuantLinear, rounding: Rounding) -> Rounding:
    return lambda x: rounding(QuantLinear.gathered(linear, x))


def measure(decoder: Decoder, chunks: Sequence[Sequence[int]], rounding: Rounding) -> tuple[float, float]:
    """Return mean KL in nats from the model without rounding, and the share of tokens with the same first choice."""
    total, same, count = 0.0, 0, 0
    for chunk in chunks:
        round_inputs(decoder, lambda x: x)
        log_p = forward_logits(decoder, chunk).log_softmax(-1)
        round_inputs(decoder, rounding)
        log_q = forward_logits(decoder, chunk).log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0).sum())
        same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        count += len(chunk)
    return total / count, same / count


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 64, 128])
    args = parser.parse_args()
    dispatch.set_threads(args.threads)
    checkpoint = open_checkpoint(args.model)
    chunks = take_chunks(tokens_of(checkpoint, [args.text]), args.chunks, args.length)
    decoder = load_model(checkpoint, make_plan(checkpoint, ["cpu"], args.length, slots=1, dtype="float32"))
    ways: dict[str, Rounding] = {"bfloat16": lambda x: x.bfloat16().float()}
    ways |= {f"int8, groups of {g}": lambda x, g=g: rounded_tokens(x, g) for g in args.groups}  # type: ignore[misc]
    print(f"{args.model.name}, {args.chunks} x {args.length} tokens of {args.text.name}\n", flush=True)
    print("| tokens in | mean KL, nats | same first choice |\n| --- | ---: | ---: |", flush=True)
    for name, rounding in ways.items():
        kl, top1 = measure(decoder, chunks, rounding)
        print(f"| {name} | {kl:.1e} | {top1:.1%} |", flush=True)


if __name__ == "__main__":
    main()
