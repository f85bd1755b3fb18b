"""How far 4-bit files are from their BF16 source: ours beside the peers', in one pass, as a Markdown table.

    quantize_quality.py SOURCE CANDIDATE [CANDIDATE ...] --text FILE [FILE ...] [--chunks 24] [--length 512]

A CANDIDATE is `NAME=PATH`: an AWQ or GPTQ folder or a .gguf file, made by anyone. All of them run layer by layer beside
the source, in float32, over the same windows, taken evenly from every text. KL is that of the source from the
candidate, in nats a token, with a 95 % bootstrap over windows; `to the first` is the interval of the difference to the
first candidate, window by window, much narrower than what the intervals of two candidates suggest.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from qlocal.errors import QLocalError, UsageError
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.metrics import Evaluation, bootstrap_interval, evaluate, take_chunks
from qlocal.tokenizer.tokenizer import Tokenizer
from quantize.gate.streaming import Machine, run_layers


@dataclass(frozen=True)
class Candidate:
    """One line of the table."""

    name: str
    checkpoint: Checkpoint

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(stored.num_bytes for stored in self.checkpoint.tensors.values())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("candidates", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    try:
        source = open_checkpoint(arguments.source)
        candidates = [_candidate(text) for text in arguments.candidates]
        evaluations = measure(source, candidates, arguments.text, arguments.chunks, arguments.length)
    except QLocalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(candidates, evaluations))
    return 0


def measure(
    source: Checkpoint, candidates: list[Candidate], texts: list[Path], num_chunks: int, length: int
) -> list[Evaluation]:
    """Return the distance of every candidate, the source run once."""
    with Guard() as guard:
        tokenizer = Tokenizer.load(source.tokenizer(), guard)
        encoded = [tokenizer.encode(path.read_text(encoding="utf-8")) for path in texts]
    chunks = take_chunks(encoded, num_chunks, length)

    def on_layer(done: int, total: int) -> None:
        print(f"layer {done} of {total}", file=sys.stderr)

    windows = [chunk[:-1] for chunk in chunks]
    reference, streams = run_layers(source, [c.checkpoint for c in candidates], windows, Machine(), on_layer)
    return [evaluate(stream.decoder, chunks, reference) for stream in streams]


def table(candidates: list[Candidate], evaluations: list[Evaluation]) -> str:
    """Return the Markdown table."""
    lines = [
        "| file | bytes of tensors | mean KL | 95 % | to the first | median | p99 | top-1 | perplexity |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for candidate, found in zip(candidates, evaluations, strict=True):
        assert found.interval is not None, "evaluated with a reference"
        pairs = zip(found.kl_of_chunks, evaluations[0].kl_of_chunks, strict=True)
        low, high = bootstrap_interval([ours - first for ours, first in pairs])
        lines.append(
            f"| {candidate.name} | {candidate.num_bytes:,} | {found.mean_kl:.4g} | {found.interval[0]:.4g} to "
            f"{found.interval[1]:.4g} | {low:+.2g} to {high:+.2g} | {found.median_kl:.3g} | {found.p99_kl:.3g} | "
            f"{100 * (found.top1 or 0):.1f} % | {found.ppl:.2f} |"
        )
    lines.append(f"\nThe source's perplexity is {evaluations[0].ppl_source:.2f}.")
    return "\n".join(lines)


def _candidate(text: str) -> Candidate:
    name, _, path = text.partition("=")
    if not path:
        raise UsageError(f"{text[:80]!r} names no file", hint="Write NAME=PATH.")
    return Candidate(name, open_checkpoint(Path(path)))


if __name__ == "__main__":
    sys.exit(main())
