"""Damaging a finished result on purpose: the scales of one layer's linears doubled, as they lie in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_reader import read_gguf
from qlocal.formats.hf_checkpoint import HfCheckpoint
from qlocal.ggml_types import GgmlType, row_bytes

SCALES_OF_BLOCK = {GgmlType.Q4_0: 1, GgmlType.Q8_0: 1, GgmlType.Q4_1: 2}
"""The float16 values at the front of a block that scale it: the scale, and the minimum where there is one."""


def double_scales(result: Path, layer: int) -> None:
    """Double the scales of every quantized linear of `layer`."""
    if result.suffix == ".gguf":
        _double_gguf(result, layer)
    else:
        _double_folder(result, layer)


def _double_folder(folder: Path, layer: int) -> None:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, HfCheckpoint)
    for parts in checkpoint.parts.values():
        if parts.stored.spec.layer == layer and "scales" in parts.infos:
            info = parts.infos["scales"]
            _double(info.file.path, info.offset, info.num_bytes // 2, 1, 2)


def _double_gguf(file: Path, layer: int) -> None:
    for name, tensor in read_gguf(file).tensors.items():
        if name.startswith(f"blk.{layer}.") and tensor.ggml_type in SCALES_OF_BLOCK:
            size = row_bytes(tensor.ggml_type, 32)
            count = int(np.prod(tensor.shape)) // 32
            _double(file, tensor.offset, count, SCALES_OF_BLOCK[tensor.ggml_type], size)


def _double(file: Path, offset: int, count: int, values: int, stride: int) -> None:
    """Double the first `values` float16 of `count` records of `stride` bytes each."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        records = np.frombuffer(bytearray(opened.read(count * stride)), dtype=np.uint8).reshape(count, stride)
        scales = records[:, : 2 * values].copy().view(np.float16) * np.float16(2)
        records[:, : 2 * values] = scales.view(np.uint8)
        opened.seek(offset)
        opened.write(records.tobytes())
