"""How far a model is from its reference on a text: KL divergence, top-1 agreement, perplexity. Knows no files.

Chunks are independent windows of tokens; every token but the first of a chunk is predicted. KL is that of the
reference from the model, in nats a token; its interval is a 95 % bootstrap over chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.errors import UsageError
from qlocal.layers.attention import Attend, causal
from qlocal.layers.decoder import Decoder
from qlocal.layers.paged_attention import PagedAttention, TokenRun

ROWS = 64
"""Rows whose logits are held at once: (64, V) f32 are 39 MB for Qwen's vocabulary."""
NUM_DRAWS = 2000
OnChunk = Callable[[int, int], None]
"""Called with (chunks done, chunks in all)."""
Attention = Callable[[int], Callable[[int], Attend]]
"""From the length of a sequence that is read as a whole to the attention of each layer."""


def without_cache(length: int) -> Callable[[int], Attend]:
    """Return attention over the sequence itself."""
    attend = causal([length])
    return lambda _: attend


def over_cache(storage: KVStorage, block_size: int) -> Attention:
    """Return attention that stores keys and values as `storage` holds them, and reads them back."""

    def attention(length: int) -> Callable[[int], Attend]:
        run = TokenRun(length, 0, list(range(-(-length // block_size))))
        return PagedAttention([run], storage, block_size).of_layer

    return attention


@dataclass(frozen=True)
class Evaluation:
    """What was measured. The distances are None, and there are none of single chunks, without a reference."""

    num_chunks: int
    num_predicted: int
    ppl: float
    ppl_source: float | None = None
    mean_kl: float | None = None
    interval: tuple[float, float] | None = None
    median_kl: float | None = None
    p99_kl: float | None = None
    max_kl: float | None = None
    top1: float | None = None
    kl_of_chunks: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def take_chunks(texts: Sequence[Sequence[int]], num_chunks: int, length: int) -> list[list[int]]:
    """Return `num_chunks` windows of `length` ids, taken evenly from every text and evenly over its length.

    Raises UsageError when the texts are too short.
    """
    taken: list[list[int]] = []
    for index, ids in enumerate(texts):
        share = num_chunks // len(texts) + (index < num_chunks % len(texts))
        stride = max(length, len(ids) // max(share, 1))
        taken += [list(ids[i * stride : i * stride + length]) for i in range(share)]
    if not taken or any(len(chunk) < length for chunk in taken):
        found = ", ".join(str(len(ids)) for ids in texts)
        raise UsageError(
            f"the text is too short for {num_chunks} chunks of {length} tokens (tokens in each file: {found})",
            hint="Give more text, or ask for fewer or shorter chunks.",
        )
    return taken


@torch.inference_mode()
def evaluate(
    model: Decoder,
    chunks: Sequence[Sequence[int]],
    reference: Decoder | None = None,
    on_chunk: OnChunk | None = None,
    attention: Attention = without_cache,
) -> Evaluation:
    """Let `model`, with `attention`, and `reference` where given predict every chunk (at least 2 tokens each)."""
    tally = _Tally(attention)
    for index, chunk in enumerate(chunks):
        tally.add_chunk(model, chunk, reference)
        if on_chunk is not None:
            on_chunk(index + 1, len(chunks))
    return tally.result(has_reference=reference is not None)


@torch.inference_mode()
def forward_logits(decoder: Decoder, input_ids: Sequence[int]) -> Tensor:
    """Return (T, V) f32 for one sequence, without a cache."""
    return decoder.logits(_hidden_states(decoder, input_ids))


def _hidden_states(decoder: Decoder, input_ids: Sequence[int], attention: Attention = without_cache) -> Tensor:
    ids = torch.tensor(list(input_ids), dtype=torch.int64)
    return decoder.forward(ids, torch.arange(len(ids)), attention(len(ids)))


class _Tally:
    """Sums over the chunks read so far."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._kl: list[np.ndarray[Any, np.dtype[np.float32]]] = []  # one array a chunk
        self._nll = self._nll_source = 0.0
        self._num_same = self._num_predicted = self._num_chunks = 0

    def add_chunk(self, model: Decoder, chunk: Sequence[int], reference: Decoder | None) -> None:
        inputs, targets = chunk[:-1], torch.tensor(list(chunk[1:]))
        hidden = _hidden_states(model, inputs, self._attention)
        hidden_source = None if reference is None else _hidden_states(reference, inputs)
        divergences = []
        for start in range(0, len(targets), ROWS):
            rows, wanted = slice(start, start + ROWS), targets[start : start + ROWS, None]
            log_q = model.logits(hidden[rows]).cpu().log_softmax(-1)
            self._nll -= float(log_q.gather(1, wanted).double().sum())
            if reference is not None and hidden_source is not None:
                log_p = reference.logits(hidden_source[rows]).cpu().log_softmax(-1)
                self._nll_source -= float(log_p.gather(1, wanted).double().sum())
                self._num_same += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
                divergences.append((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0))
        self._num_predicted += len(targets)
        self._num_chunks += 1
        if divergences:
            self._kl.append(torch.cat(divergences).numpy())

    def result(self, *, has_reference: bool) -> Evaluation:
        num_chunks, predicted = self._num_chunks, self._num_predicted
        ppl = _perplexity(self._nll, predicted)
        if not has_reference:
            return Evaluation(num_chunks, predicted, ppl)
        every = np.concatenate(self._kl)
        of_chunks = tuple(float(chunk.mean()) for chunk in self._kl)
        return Evaluation(
            num_chunks=num_chunks,
            num_predicted=predicted,
            ppl=ppl,
            ppl_source=_perplexity(self._nll_source, predicted),
            mean_kl=float(every.mean()),
            interval=bootstrap_interval(of_chunks),
            median_kl=float(np.median(every)),
            p99_kl=float(np.percentile(every, 99)),
            max_kl=float(every.max()),
            top1=self._num_same / predicted,
            kl_of_chunks=of_chunks,
        )


def _perplexity(nll: float, predicted: int) -> float:
    """Return exp(nll / predicted); infinity where a damaged model is beyond the range of a float."""
    mean = nll / predicted
    return math.inf if mean > 700 else math.exp(mean)


def bootstrap_interval(chunk_means: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over chunks, by drawing chunks with replacement (fixed seed)."""
    means = np.asarray(chunk_means)
    draws = np.random.default_rng(0).integers(0, len(means), (NUM_DRAWS, len(means)))
    low, high = np.percentile(means[draws].mean(1), (2.5, 97.5))
    return float(low), float(high)
