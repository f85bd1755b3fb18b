"""Whole distributions in a file, so that another model's can be held against them: KL over the whole vocabulary.

A file is the number of its columns and rows of float32 logits. It lives from one scoring to the next, on one machine.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"qlocalR1"


@dataclass(frozen=True)
class Divergence:
    """In nats: `kl` of this model from the reference, KL(reference || model); `reverse` is KL(model || reference)."""

    kl: float
    reverse: float


def begin(path: Path, num_tokens: int) -> None:
    """Make an empty file of rows with `num_tokens` columns. OSError."""
    path.write_bytes(_HEADER.pack(_MAGIC, num_tokens))
    path.chmod(0o600)


def append(path: Path, logits: Tensor) -> None:
    """Add rows. logits: (t, V) f32 on any device; columns beyond those of the file are left out. OSError."""
    num_tokens = _num_tokens(path)
    with path.open("ab") as file:
        file.write(logits[:, :num_tokens].float().cpu().contiguous().numpy().tobytes())


def num_rows(path: Path) -> int:
    """Return how many rows a file holds; OSError, ValueError where it is none."""
    return (path.stat().st_size - _HEADER.size) // (4 * _num_tokens(path))


def divergences(path: Path, first: int, logits: Tensor, num_tokens: int) -> list[Divergence]:
    """Hold rows against those of a file from `first` on. logits: (t, V) f32; their first `num_tokens` columns count.

    Vocabularies of one family are padded to different sizes: the ids that both have are compared, as distributions.
    """
    width = _num_tokens(path)
    with path.open("rb") as file:
        file.seek(_HEADER.size + 4 * width * first)
        stored = bytearray(file.read(4 * width * len(logits)))
    reference = torch.frombuffer(stored, dtype=torch.float32).view(-1, width)  # (t, V of the file)
    common = min(width, num_tokens)
    p = reference[:, :common].double().log_softmax(-1)
    q = logits[:, :common].cpu().double().log_softmax(-1)
    forward = (p.exp() * (p - q)).sum(-1)
    backward = (q.exp() * (q - p)).sum(-1)
    # Rounding can make the distance of equal distributions a little less than nothing.
    return [
        Divergence(max(0.0, kl), max(0.0, reverse))
        for kl, reverse in zip(forward.tolist(), backward.tolist(), strict=True)
    ]


def _num_tokens(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) != _HEADER.size or not header.startswith(_MAGIC):
        raise ValueError(f"{path.name} holds no reference distributions")
    return int(_HEADER.unpack(header)[1])
