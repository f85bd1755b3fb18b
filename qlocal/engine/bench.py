"""`qlocal bench MODEL`: tokens a second of prompt and of decoding, beside the rate at which memory is read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.engine.engine import Engine
from qlocal.engine.loading import load_engine
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels.benchmark import read_bandwidth
from qlocal.models.base import Role
from qlocal.protocol import Finished, Load, Sampling, Started, Submit


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompt and of the answer, and how often both are run."""

    prompt_tokens: int = 512
    decode_tokens: int = 64
    repeats: int = 3


def run(load: Load, lengths: Lengths) -> dict[str, Any]:
    """Load a model and measure it. Returns medians with (least, greatest) over the repeats.

    `decode_share`: bytes of weights that a token needs, times tokens a second, over the measured read rate.
    """
    checkpoint = open_checkpoint(Path(load.path))
    vocab_size = checkpoint.config.vocab_size
    engine = load_engine(load, lambda _: None)
    with closing(engine):
        warm_up = Lengths(lengths.prompt_tokens, min(4, lengths.decode_tokens))  # first touch of weights and buffers
        _one_run(engine, warm_up, 0, vocab_size)
        runs = [_one_run(engine, lengths, repeat + 1, vocab_size) for repeat in range(lengths.repeats)]
    prompt_rates, decode_rates = [run.prompt_rate for run in runs], [run.decode_rate for run in runs]
    read_rate = read_bandwidth()
    saved_bytes = 0 if engine.ready.held_head is None else engine.ready.held_head.saved_bytes
    return {
        "model": load.path,
        "dtype": load.dtype,
        "devices": engine.ready.devices,
        "split": engine.ready.plan["split"],
        "loaded_bytes": engine.ready.loaded_bytes,
        "load_s": engine.ready.load_s,
        "prompt_tokens": lengths.prompt_tokens,
        "decode_tokens": lengths.decode_tokens,
        "prompt_tokens_per_s": statistics.median(prompt_rates),
        "prompt_spread": [min(prompt_rates), max(prompt_rates)],
        "decode_tokens_per_s": statistics.median(decode_rates),
        "decode_spread": [min(decode_rates), max(decode_rates)],
        "drafted_tokens": sum(run.drafted_tokens for run in runs),
        "accepted_tokens": sum(run.accepted_tokens for run in runs),
        "read_bytes_per_s": read_rate,
        "decode_share": statistics.median(decode_rates) * (bytes_per_token(checkpoint) - saved_bytes) / read_rate,
    }


def bytes_per_token(checkpoint: Checkpoint) -> float:
    """Return the bytes of weights that decoding one token reads: layers and head, and the routed experts alone."""
    config = checkpoint.config
    roles = {stored.spec.role for stored in checkpoint.tensors.values()}
    unused = Role.EMBEDDING if Role.HEAD in roles else None  # a tied embedding is read as the head
    routed = config.num_experts_per_tok / config.num_experts if config.num_experts else 1.0
    return sum(
        stored.num_bytes * (1.0 if stored.spec.expert is None else routed)
        for stored in checkpoint.tensors.values()
        if stored.spec.role is not unused
    )


def operations_per_token(checkpoint: Checkpoint) -> float:
    """Return what a token of a prompt multiplies and adds, two a product: the layers' linears, routed experts alone.

    The head is computed for the last token only, and attention grows with the prompt: neither is counted."""
    config = checkpoint.config
    routed = config.num_experts_per_tok / config.num_experts if config.num_experts else 1.0
    return sum(
        2 * math.prod(stored.spec.shape) * (1.0 if stored.spec.expert is None else routed)
        for stored in checkpoint.tensors.values()
        if stored.spec.is_quantized
    )


@dataclass(frozen=True)
class _Run:
    """Tokens a second of one request, and its guesses."""

    prompt_rate: float
    decode_rate: float
    drafted_tokens: int
    accepted_tokens: int


def _one_run(engine: Engine, lengths: Lengths, run_number: int, vocab_size: int) -> _Run:
    """Measure one request, whose prompt shares nothing with the others."""
    input_ids = [(7919 * run_number + 31 * i) % vocab_size for i in range(lengths.prompt_tokens)]
    sampling = Sampling(temperature=0.0)
    engine.submit(Submit(f"bench-{run_number}", input_ids, lengths.decode_tokens + 1, [], sampling, vocab_size))
    prefill_s, finished = 0.0, None
    for message in _until_idle(engine):
        if isinstance(message, Started):
            prefill_s = message.prefill_s
        elif isinstance(message, Finished):
            assert message.reason == "length", f"the benchmark's request ended with: {message.message}"
            finished = message
    assert finished is not None, "every request ends"
    # The first token comes with the prompt; the clock of decoding starts there.
    return _Run(
        lengths.prompt_tokens / prefill_s,
        lengths.decode_tokens / finished.decode_s,
        finished.drafted_tokens,
        finished.accepted_tokens,
    )


def _until_idle(engine: Engine) -> Iterator[object]:
    while engine.has_work:
        yield from engine.step()
