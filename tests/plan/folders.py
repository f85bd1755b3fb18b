"""Checkpoint folders in AWQ, of random codes or of nothing at all: what a plan sees of them are the headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qlocal.formats import gguf_keys
from qlocal.formats.awq import part_shapes
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.formats.gguf_writer import GgufWriter
from qlocal.formats.hf_folder import INDEX_NAME, read_tokenizer
from qlocal.formats.quantization_config import QuantizationConfig
from qlocal.formats.safetensors_writer import SafetensorsWriter, index_json, plan_shards
from qlocal.formats.type_mix import MIXES, choose_types, gguf_entries
from qlocal.models import ARCHITECTURES
from qlocal.models.config_fields import parse_config
from quantize.recipe import hf_entries
from tests import tiny

GROUP_SIZE = 128


def write_awq(folder: Path, overrides: Mapping[str, Any]) -> Path:
    """Write a qwen2 folder whose codes are random, with its tokenizer."""
    tiny.write_checkpoint(folder, "qwen2")
    raw = tiny.raw_config("qwen2", {**overrides, "quantization_config": {"quant_method": "awq", "bits": 4}})
    (folder / "config.json").write_text(json.dumps(raw))
    architecture, generator = ARCHITECTURES["qwen2"], torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for spec in architecture.tensors(parse_config(raw, architecture, "config.json")):
        if not spec.is_quantized:
            tensors[spec.name] = (torch.randn(spec.shape, generator=generator) * 0.02).half()
            continue
        for part, shape in part_shapes(*spec.shape, GROUP_SIZE).items():
            words = torch.randint(-(1 << 31), (1 << 31) - 1, shape, generator=generator, dtype=torch.int32)
            tensors[f"{spec.module}.{part}"] = (words.float() * 1e-12).half() if part == "scales" else words
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
"""Qwen2.5-72B, but for the vocabulary, which is the tiny tokenizer's."""


def write_large_headers(folder: Path, kind: str) -> Path:
    """Write a 72B checkpoint of `awq` or of a GGUF mix whose files have their sizes and headers, and nothing else."""
    tiny.write_checkpoint(folder, "qwen2")
    architecture, raw = ARCHITECTURES["qwen2"], tiny.raw_config("qwen2", LARGE)
    config = parse_config(raw, architecture, "config.json")
    if kind != "awq":
        data = read_tokenizer(folder)
        vocabulary = vocabulary_for_gguf(data, config, config.eos_token_ids)
        keys = gguf_keys.model_keys(architecture, config, "Large", MIXES[kind].file_type)
        keys |= gguf_keys.tokenizer_keys(vocabulary, data)
        types = choose_types(architecture, config, kind, has_imatrix=True)
        path = folder / f"large-{kind}.gguf"
        GgufWriter(path, keys, gguf_entries(architecture, config, types)).abandon()
        return path
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    shards = plan_shards(
        hf_entries(architecture, config, QuantizationConfig("awq", GROUP_SIZE, False, "gemm")), 4 << 30
    )
    for shard in shards:
        SafetensorsWriter(folder / shard.name, shard.entries).abandon()
    (folder / INDEX_NAME).write_bytes(index_json(shards))
    return folder
