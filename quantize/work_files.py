"""The work folder: the tensors of every finished unit, a safetensors file a unit and target."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import ResumeError
from qlocal.formats.safetensors_file import TORCH_NAMES, TensorInfo, read_header
from qlocal.formats.safetensors_writer import SafetensorsWriter, TensorEntry
from quantize.state import WorkFile, file_sha256, sync_folder

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


def write_unit(folder: Path, target: str, unit: str, tensors: Mapping[str, Tensor]) -> WorkFile:
    """Store the tensors of one unit: written beside, flushed, renamed. Returns what the journal remembers."""
    name = f"{target}-{unit}.safetensors"
    beside = folder / f"{name}.{uuid.uuid4().hex}.tmp"  # a worker that was given up may still be at it
    entries = {n: TensorEntry(_DTYPES[str(t.dtype).removeprefix("torch.")], tuple(t.shape)) for n, t in tensors.items()}
    writer = SafetensorsWriter(beside, entries)
    try:
        for tensor_name, tensor in tensors.items():
            writer.write(tensor_name, tensor)
        writer.close()
    finally:
        writer.abandon()
    digest, size = file_sha256(beside), beside.stat().st_size
    beside.replace(folder / name)
    sync_folder(folder)
    return WorkFile(name, size, digest)


def read_unit(folder: Path, file: WorkFile) -> dict[str, TensorInfo]:
    """Return the tensors of a finished unit, mapped; ResumeError when the file is not what was written."""
    path = folder / file.name
    if file_sha256(path) != file.sha256:
        raise ResumeError(f"{path}: is damaged", hint=f"To start over, delete {folder}.")
    return read_header(path)
