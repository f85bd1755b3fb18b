"""Importance files as llama-imatrix writes them, made in a test."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qlocal.formats import gguf_values
from qlocal.formats.gguf_writer import GgufEntry, GgufWriter
from qlocal.ggml_types import GgmlType

TEXT = "wiki.txt"


def legacy_entry(name: str, values: Tensor, calls: int) -> bytes:
    """Return one entry: values (n,) f32 are stored times `calls`."""
    data = (values.float() * max(calls, 1)).numpy().tobytes()
    return struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.numel()) + data


def write_legacy(path: Path, entries: Mapping[str, Tensor], calls: int = 3, *, trailer: bool = True) -> Path:
    """Write the binary format. entries: mean x² by tensor name, experts one after another."""
    content = struct.pack("<i", len(entries))
    content += b"".join(legacy_entry(name, values, calls) for name, values in entries.items())
    if trailer:
        content += struct.pack("<ii", calls, len(TEXT)) + TEXT.encode()
    path.write_bytes(content)
    return path


def write_gguf(path: Path, entries: Mapping[str, Tensor], counts: Mapping[str, Tensor] | None = None) -> Path:
    """Write the GGUF format. entries: mean x² (n,) or (experts, n); counts: tokens (experts,), 8 where not given."""
    tensors: dict[str, Tensor] = {}
    for name, means in entries.items():
        rows = means.view(-1, means.shape[-1]).float()
        tokens = (counts or {}).get(name, torch.full((len(rows),), 8.0)).float().view(-1, 1)
        tensors |= {f"{name}.in_sum2": rows * tokens, f"{name}.counts": tokens}
    return write_tensors(path, tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str = "imatrix") -> Path:
    """Write a GGUF file with the keys of an importance file and these tensors in F32."""
    keys = {
        "general.type": gguf_values.text(kind),
        "imatrix.datasets": gguf_values.array(gguf_values.ValueType.STRING, [TEXT]),
        "imatrix.chunk_count": gguf_values.uint32(3),
        "imatrix.chunk_size": gguf_values.uint32(512),
    }
    writer = GgufWriter(path, keys, [GgufEntry(name, tuple(t.shape), GgmlType.F32) for name, t in tensors.items()])
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    return path
