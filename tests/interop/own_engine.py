"""Logits of this project's own engine for the comparisons in this folder."""

from __future__ import annotations

from pathlib import Path

import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_checkpoint import GgufCheckpoint, stacked_shape
from qlocal.formats.gguf_rows import permute_rows
from qlocal.formats.gguf_writer import GgufEntry, GgufWriter
from qlocal.ggml_types import GgmlType
from qlocal.kernels import reference
from qlocal.layers.attention import causal
from qlocal.layers.loader import load_model
from qlocal.plan import make_plan


def logits(path: Path, tokens: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return (C, S, V) float32 for tokens (C, S) int64; every row is a sequence of its own."""
    checkpoint = open_checkpoint(path)
    model = load_model(checkpoint, make_plan(checkpoint, ["cpu"], slots=1, dtype=dtype))
    positions = torch.arange(tokens.shape[1])
    attend = causal([tokens.shape[1]])
    return torch.stack([model.logits(model.forward(row, positions, lambda _: attend)) for row in tokens])


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
