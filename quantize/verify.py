"""The gate `quantize verify`: how far a candidate's distribution is from its source's, a layer in memory at a time."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qlocal import catalog
from qlocal.errors import QualityError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.layers.attention import Attend, causal
from qlocal.layers.decoder import Decoder
from qlocal.layers.loader import load_embedding, load_head, load_layer
from qlocal.layers.norm import rms_norm
from qlocal.layers.rotary import Rotary
from qlocal.metrics import Evaluation, evaluate, take_chunks
from qlocal.tokenizer.tokenizer import Tokenizer
from quantize.arguments import Parser
from quantize.calibration.documents import SHIPPED, read_text

GATE_FAILED = QualityError.exit_code


class StreamedDecoder(Decoder):
    """A model whose layers were run one by one over known chunks; it answers for those chunks alone.

    Held in memory: the residual streams of all chunks and the head.
    """

    def __init__(self, checkpoint: Checkpoint, chunks: Sequence[Sequence[int]], device: str, dtype: str) -> None:
        self.config = checkpoint.config
        self._states = _run_layers(checkpoint, chunks, device, dtype)
        self._norm, self._output = load_head(checkpoint, device, dtype)

    def forward(self, input_ids: Tensor, positions: Tensor, attend_of_layer: Callable[[int], Attend]) -> Tensor:
        """Return the residual stream (T, D) f32 of a known chunk."""
        return self._states[tuple(input_ids.tolist())]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return (T, V) f32 for (T, D) f32."""
        states = rms_norm(hidden_states.to(self._norm.device), self._norm, self.config.rms_norm_eps)
        return self._output(states)[0]


def verify_command(arguments: Sequence[str]) -> int:
    """Run `quantize verify ...`; returns 0, or 3 when the gate fails."""
    parsed = build_parser().parse_args(list(arguments))
    source, candidate = (open_checkpoint(catalog.resolve(path)) for path in (parsed.source, parsed.candidate))
    _check_pair(source, candidate)
    measured = measure(source, candidate, tuple(parsed.text), parsed.chunks, parsed.length, parsed.dtype)
    failures = _failures(measured, parsed)
    if parsed.json:
        print(json.dumps(measured.to_json() | {"passed": not failures, "failures": failures}, indent=1))
    else:
        _print(measured, failures)
    return GATE_FAILED if failures else 0


def build_parser() -> Parser:
    """Return the parser of `quantize verify`."""
    parser = Parser(prog="quantize verify", description="Measure a quantized checkpoint against its source.")
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the BF16 folder")
    add("candidate", metavar="CANDIDATE", help="AWQ or GPTQ folder, or .gguf file")
    add("--text", type=Path, nargs="+", default=[], metavar="FILE", help="texts to predict (some shipped ones if none)")
    add("--chunks", type=int, default=16, help="windows of text")
    add("--length", type=int, default=512, help="tokens of a window")
    add("--max-kl", type=float, default=0.1, help="largest mean KL in nats a token")
    add("--min-top1", type=float, default=0.0, help="smallest share of tokens with the same favourite, 0 to 1")
    add("--max-ppl-ratio", type=float, default=None, help="largest perplexity relative to the source's")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="inputs of matrix products")
    add("--json", action="store_true", help="machine-readable output")
    return parser


def measure(
    source: Checkpoint, candidate: Checkpoint, texts: tuple[Path, ...], num_chunks: int, length: int, dtype: str
) -> Evaluation:
    """Return the distance of `candidate` from `source` over windows of the texts."""
    if num_chunks < 1 or length < 2:
        raise UsageError(f"--chunks {num_chunks} --length {length}: at least 1 and 2 are needed")
    paths = texts or tuple(sorted(p for p in SHIPPED.glob("prose-*.txt")))
    with Guard() as guard:
        tokenizer = Tokenizer.load(source.tokenizer(), guard)
        encoded = [tokenizer.encode(read_text(path)) for path in paths]
    if not texts:
        encoded = [[token for ids in encoded for token in ids]]
    chunks = take_chunks(encoded, num_chunks, length)
    with torch.inference_mode():
        reference = StreamedDecoder(source, chunks, "cpu", dtype)
        model = StreamedDecoder(candidate, chunks, "cpu", dtype)
    return evaluate(model, chunks, reference)


def _run_layers(
    checkpoint: Checkpoint, chunks: Sequence[Sequence[int]], device: str, dtype: str
) -> dict[tuple[int, ...], Tensor]:
    """Return the last residual stream of every chunk without its last token, which is only predicted."""
    inputs = [tuple(chunk[:-1]) for chunk in chunks]
    embedding = load_embedding(checkpoint, "cpu")
    states = [embedding(torch.tensor(ids)).to(device) for ids in inputs]
    rotary = Rotary(checkpoint.config)
    rotations = {len(ids): rotary.at(torch.arange(len(ids))).to(torch.device(device)) for ids in inputs}
    for index in range(checkpoint.config.num_hidden_layers):
        layer = load_layer(checkpoint, index, device, dtype, join=True)
        for at, ids in enumerate(inputs):
            states[at] = layer.forward(states[at], rotations[len(ids)], causal([len(ids)]))
    return dict(zip(inputs, states, strict=True))


def _check_pair(source: Checkpoint, candidate: Checkpoint) -> None:
    """Raise UsageError when the two are not of one model; the FFN may be padded."""
    for field in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        ours, theirs = getattr(candidate.config, field), getattr(source.config, field)
        if ours != theirs:
            raise UsageError(f"the candidate has {field} {ours}, the source {theirs}: they are different models")


def _failures(measured: Evaluation, limits: argparse.Namespace) -> list[str]:
    assert measured.mean_kl is not None and measured.top1 is not None and measured.ppl_source is not None, (
        "evaluated with a reference"
    )
    failures = []
    if not measured.mean_kl <= limits.max_kl:  # written so that NaN fails
        failures.append(f"mean KL {measured.mean_kl:.5f} is above {limits.max_kl}")
    if not measured.top1 >= limits.min_top1:
        failures.append(f"top-1 agreement {measured.top1:.4f} is below {limits.min_top1}")
    ratio = measured.ppl / measured.ppl_source
    if limits.max_ppl_ratio is not None and not ratio <= limits.max_ppl_ratio:
        failures.append(f"perplexity is {ratio:.4f} of the source's, above {limits.max_ppl_ratio}")
    return failures


def _print(measured: Evaluation, failures: list[str]) -> None:
    low, high = measured.interval or (0.0, 0.0)
    print(f"mean KL     {measured.mean_kl:.6f} nats a token, 95 % interval {low:.6f} to {high:.6f}")
    print(f"median, p99 {measured.median_kl:.6f}, {measured.p99_kl:.5f}")
    print(f"top-1       {measured.top1:.4f}")
    print(f"perplexity  {measured.ppl:.3f}, the source's {measured.ppl_source:.3f}")
    print("passed" if not failures else "failed: " + "; ".join(failures))
