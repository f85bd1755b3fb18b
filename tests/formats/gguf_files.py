"""Tiny GGUF checkpoints made by our writer, and raw headers for hostile files."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from qlocal.formats import gguf_keys
from qlocal.formats.base import GenerationDefaults
from qlocal.formats.gguf_metadata import ROPE_FREQS
from qlocal.formats.gguf_rows import rows_to_store
from qlocal.formats.gguf_values import MetaValue
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.formats.gguf_writer import GgufWriter
from qlocal.formats.hf_folder import read_tokenizer
from qlocal.formats.type_mix import MIXES, choose_types, gguf_entries
from qlocal.ggml_types import FLOAT_TYPES, GgmlType
from qlocal.models import ARCHITECTURES
from qlocal.models.config_fields import parse_config
from qlocal.weights import BlockWeight, DenseWeight
from quantize.methods.ggml import quantize_ggml
from tests import tiny

SAMPLING = GenerationDefaults(temperature=0.2, top_k=20, top_p=0.9, repetition_penalty=1.05)
K_QUANTS = (GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K)
TORCH_DTYPES = {GgmlType.F32: torch.float32, GgmlType.F16: torch.float16, GgmlType.BF16: torch.bfloat16}


def neutral(values: torch.Tensor, ggml_type: GgmlType) -> DenseWeight | BlockWeight:
    """Return `values` in `ggml_type`, in the model's row order; blocks are those of the gguf package, but K-quants."""
    if ggml_type in FLOAT_TYPES:
        return DenseWeight(values.to(TORCH_DTYPES[ggml_type]))
    if ggml_type in K_QUANTS:
        return quantize_ggml(values.float(), ggml_type, None).weight
    blocks = gguf.quants.quantize(values.float().numpy(), gguf.GGMLQuantizationType(int(ggml_type)))
    return BlockWeight(torch.from_numpy(blocks), ggml_type, values.shape[-1])


def write_tiny_gguf(
    path: Path,
    model_type: str,
    mix: str = "q8_0",
    overrides: Mapping[str, Any] | None = None,
    max_shard_bytes: int | None = None,
) -> tuple[list[Path], dict[str, DenseWeight | BlockWeight]]:
    """Write a GGUF checkpoint of tiny weights; return its parts and what each tensor must read back as."""
    raw = tiny.raw_config(model_type, overrides)
    architecture = ARCHITECTURES[model_type]
    config = parse_config(raw, architecture, "config.json")
    data = read_tokenizer(tiny.write_checkpoint(path.parent / "source", model_type, overrides))
    vocabulary = vocabulary_for_gguf(data, config, config.eos_token_ids)
    keys: dict[str, MetaValue] = gguf_keys.model_keys(architecture, config, "Tiny", MIXES[mix].file_type)
    keys |= gguf_keys.sampling_keys(SAMPLING) | gguf_keys.tokenizer_keys(vocabulary, data)
    types = choose_types(architecture, config, mix, has_imatrix=False)
    writer = GgufWriter(path, keys, gguf_entries(architecture, config, types), max_shard_bytes)
    tensors = tiny.tiny_tensors(model_type, config)
    weights = {}
    for spec in reversed(list(architecture.tensors(config))):  # any order
        weight = neutral(tensors[spec.name], types[spec.gguf_name])
        writer.write(spec.gguf_name, rows_to_store(weight, spec), spec.expert or 0)
        weights[spec.name] = weight
    factors = gguf_keys.rope_factors(config)
    if factors is not None:
        writer.write(ROPE_FREQS, torch.tensor(factors, dtype=torch.float32))
    writer.close()
    return writer.paths, weights


def string(text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: bytes | str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def info(name: bytes | str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file_bytes(
    keys: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """Return a GGUF file whose counts may lie."""
    counts = (len(infos) if num_tensors is None else num_tensors, len(keys) if num_keys is None else num_keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def float_bytes(count: int) -> bytes:
    return np.arange(count, dtype=np.float32).tobytes()
