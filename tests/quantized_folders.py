"""Tiny AWQ and GPTQ folders whose weights are those of `tiny`, rounded: they compute something sensible."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qlocal.formats import awq, gptq, packing
from qlocal.formats.quantization_config import parse_quantization_config
from qlocal.models import ARCHITECTURES
from qlocal.weights import AffineWeight
from tests import tiny


def rounded(values: torch.Tensor, group_size: int, seed: int | None = None) -> AffineWeight:
    """Round (N, K) to codes around 8; with a seed, its columns are dealt to groups at random (act-order)."""
    rows, columns = values.shape
    order = torch.arange(columns)
    if seed is not None:
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
    groups = values.float()[:, order].view(rows, -1, group_size)
    scales = (groups.abs().amax(-1) / 7).half()
    codes = (groups / scales.float()[..., None] + 8).round().clamp(0, 15).to(torch.uint8).view(rows, columns)
    place = torch.argsort(order)  # where a column stands among the sorted ones
    g_idx = None if seed is None else (place // group_size).to(torch.int32)
    return AffineWeight(
        packing.pack_codes(codes[:, place]), scales, torch.full(scales.shape, 8, dtype=torch.uint8), group_size, g_idx
    )


def write_quantized(
    folder: Path,
    model_type: str,
    method: str,
    overrides: Mapping[str, Any] | None = None,
    group_size: int = 32,
    desc_act: bool = False,
) -> Path:
    """Write a folder of `method` (awq or gptq); desc_act: GPTQ with scattered columns."""
    tiny.write_checkpoint(folder, model_type, overrides)
    settings: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": group_size}
    settings |= {"zero_point": True} if method == "awq" else {"sym": True, "desc_act": desc_act}
    config = parse_quantization_config(settings, "config.json")
    assert config is not None, "the settings are those of a quantized folder"
    tensors = load_file(folder / "model.safetensors")
    for seed, spec in enumerate(ARCHITECTURES[model_type].tensors(tiny.tiny_config(model_type, overrides))):
        if spec.is_quantized:
            values = tensors.pop(spec.name)
            weight = rounded(values, config.groups(values.shape[1]), seed if desc_act else None)
            stored = awq.encode(weight) if method == "awq" else gptq.encode(weight, config)
            tensors |= {f"{spec.module}.{part}": tensor for part, tensor in stored.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder
