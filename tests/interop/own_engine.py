"""Logits of this project's own engine for the comparisons in this folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from qlocal.engine.loading import load_engine
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_checkpoint import GgufCheckpoint, stacked_shape
from qlocal.formats.gguf_rows import permute_rows
from qlocal.formats.gguf_writer import GgufEntry, GgufWriter
from qlocal.ggml_types import GgmlType
from qlocal.kernels import reference
from qlocal.layers.attention import causal
from qlocal.layers.loader import load_model
from qlocal.plan import make_plan
from qlocal.protocol import Load, Sampling, TokenLogprobs
from tests.engine import running

TOP_LOGPROBS = 20


def logits(path: Path, tokens: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return (C, S, V) float32 for tokens (C, S) int64; every row is a sequence of its own."""
    checkpoint = open_checkpoint(path)
    model = load_model(checkpoint, make_plan(checkpoint, ["cpu"], slots=1, dtype=dtype))
    positions = torch.arange(tokens.shape[1])
    attend = causal([tokens.shape[1]])
    return torch.stack([model.logits(model.forward(row, positions, lambda _: attend)) for row in tokens])


@dataclass(frozen=True)
class GreedyAnswer:
    """The most likely token at each step, and what the model thought of the others."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs]

    def logprob_of(self, step: int, token_id: int) -> float:
        """Return the log probability of a token at a step; -inf outside the TOP_LOGPROBS best."""
        scored = self.logprobs[step]
        return dict(zip(scored.top_ids, scored.top_logprobs, strict=True)).get(token_id, -math.inf)


def greedy_answers(path: Path, prompt_ids: list[list[int]], num_tokens: int, dtype: str) -> list[GreedyAnswer]:
    """Return `num_tokens` greedy tokens for each prompt, by the whole engine; nothing ends an answer earlier."""
    engine = load_engine(Load(str(path), ["cpu"], max_context=512, dtype=dtype), lambda _: None)
    sampling = Sampling(temperature=0.0, top_logprobs=TOP_LOGPROBS)
    requests = [
        running.request(str(i), ids, num_tokens, sampling, num_tokens=engine.vocab_size)
        for i, ids in enumerate(prompt_ids)
    ]
    answers = running.run(engine, *requests)
    return [GreedyAnswer(answers[r.request_id].token_ids, answers[r.request_id].logprobs) for r in requests]


def write_float32_twin(source: Path, out: Path) -> None:
    """Write the weights of a GGUF file, dequantized, as an F32 GGUF file with the same metadata."""
    checkpoint = open_checkpoint(source)
    assert isinstance(checkpoint, GgufCheckpoint)
    stored = {t.spec.gguf_name: stacked_shape(t.spec, checkpoint.config) for t in checkpoint.tensors.values()}
    writer = GgufWriter(
        out, checkpoint.header.metadata, [GgufEntry(name, shape, GgmlType.F32) for name, shape in stored.items()]
    )
    for name, tensor in checkpoint.tensors.items():
        spec, weight = tensor.spec, reference.dequantize(checkpoint.read(name))
        rows = permute_rows(weight, spec.permuted_heads) if spec.permuted_heads else weight
        writer.write(spec.gguf_name, rows, spec.expert or 0)
    writer.close()


def mean_kl(logits_p: torch.Tensor, logits_q: torch.Tensor) -> float:
    """Return the mean over tokens of KL(p || q) in nats, for (C, S, V) logits; accumulated in float64."""
    total, count = 0.0, 0
    for p_row, q_row in zip(logits_p, logits_q, strict=True):
        p, q = p_row.double().log_softmax(-1), q_row.double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        count += len(p_row)
    return total / count
