"""One safetensors file: its header checked byte by byte, its tensors as views of the mapped file.

Layout: u64 header length, JSON header, data. Every byte of the data belongs to exactly one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlocal.errors import FormatError
from qlocal.formats.mapped_file import MappedFile
from qlocal.strict_json import parse_json_object

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 262_144
MAX_DIMS = 8
_TRUNCATED = "The file is truncated or damaged; fetch it again."

ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element, by the header's dtype name."""

TORCH_NAMES = {
    "U8": "uint8", "I8": "int8", "I16": "int16", "F16": "float16", "BF16": "bfloat16", "I32": "int32",
    "F32": "float32", "I64": "int64", "F64": "float64",
}  # fmt: skip
"""The dtypes that are read here, by the name of the torch dtype."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `offset` in bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    file: MappedFile

    def load(self) -> torch.Tensor:
        """Return the tensor as a read-only view of the mapped file."""
        import torch  # heavy, and headers are read without it

        return self.file.tensor(getattr(torch, TORCH_NAMES[self.dtype]), self.shape, self.offset)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return all tensors of the file by name; FormatError names the first thing that is wrong."""
    file = MappedFile(path)
    if file.size < 8:
        raise FormatError(f"{path.name}: has {file.size} bytes, too few for a safetensors file", hint=_TRUNCATED)
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{path.name}: header of {length} bytes, at most {MAX_HEADER_BYTES} are accepted")
    if 8 + length > file.size:
        raise FormatError(f"{path.name}: header of {length} bytes in a file of {file.size} bytes", hint=_TRUNCATED)
    header = parse_json_object(file.read(8, length), f"{path.name}: header")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise FormatError(f"{path.name}: {len(header)} tensors, at most {MAX_TENSORS} are accepted")
    tensors = {name: _tensor_info(name, entry, file, 8 + length) for name, entry in header.items()}
    _check_coverage(tensors, file, 8 + length)
    return tensors


def _tensor_info(name: str, entry: Any, file: MappedFile, data_start: int) -> TensorInfo:
    where = f"{file.path.name}: tensor {name[:120]!r}"
    if not name.isprintable() or not 0 < len(name) <= 1024:
        raise FormatError(f"{where}: the name is empty, too long or not printable")
    if not isinstance(entry, Mapping) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FormatError(f"{where}: needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise FormatError(f"{where}: dtype {str(dtype)[:40]!r} is unknown")
    if not _is_counts(shape) or len(shape) > MAX_DIMS:
        raise FormatError(f"{where}: shape is not a list of at most {MAX_DIMS} whole numbers")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise FormatError(f"{where}: data_offsets is not a pair of whole numbers")
    num_bytes = ITEM_SIZES[dtype]
    for dim in shape:
        num_bytes *= dim
    begin, end = offsets
    if end - begin != num_bytes:
        raise FormatError(f"{where}: {dtype} {tuple(shape)} takes {num_bytes} bytes, data_offsets span {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, num_bytes, file)


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)


def _check_coverage(tensors: Mapping[str, TensorInfo], file: MappedFile, data_start: int) -> None:
    """Hold the tensors against the file: in order of offset they follow each other exactly, up to the last byte."""
    position = data_start
    for info in sorted(tensors.values(), key=lambda t: (t.offset, t.num_bytes)):
        if info.offset != position:
            kind = "overlaps the one before" if info.offset < position else "leaves a hole before it"
            raise FormatError(f"{file.path.name}: tensor {info.name!r} {kind} (byte {info.offset}, not {position})")
        position += info.num_bytes
    if position != file.size:
        raise FormatError(
            f"{file.path.name}: the header describes {position} bytes, the file has {file.size}", hint=_TRUNCATED
        )
