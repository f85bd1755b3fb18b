"""llama.cpp's importance files: how much the inputs of each matrix matter, a mean square for every column.

Two formats are read, and nothing in them is trusted: GGUF, with the sums and token counts as tensors, and the older
binary one, a list of names and values. What a tensor's name means in a model is not known here. No torch.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qlocal.errors import FormatError
from qlocal.formats.gguf_reader import GgufHeader, GgufTensor, read_gguf
from qlocal.formats.gguf_values import MAGIC, MAX_NAME_BYTES, ValueType
from qlocal.formats.mapped_file import MappedFile
from qlocal.ggml_types import GgmlType

MAX_FILE_BYTES = 1 << 30
"""A Mixtral 8x22B's file has 60 MB."""
MAX_ENTRIES = 1 << 16
MAX_VALUES = 1 << 26
"""Of one entry: 1024 experts of 65,536 columns."""
MAX_DATASET_BYTES = 1 << 16
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImatrixEntry:
    """Importance of one tensor. values: mean x² of its inputs in f32, those of stacked experts one after another;
    unseen: the equal parts of `values` that no token reached and that therefore say nothing; parts: how many there are.
    """

    values: array[float]
    parts: int = 1
    unseen: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ImatrixFile:
    """A whole file. entries: by GGUF tensor name; chunks: pieces of text that were read, where the file says so."""

    path: Path
    entries: Mapping[str, ImatrixEntry]
    chunks: int | None


def read_imatrix(path: Path) -> ImatrixFile:
    """Return an importance file in either format. FormatError names the file, the entry and the limit."""
    file = MappedFile(path, follow_links=True)
    if file.size > MAX_FILE_BYTES:
        raise FormatError(f"{path.name}: has {file.size} bytes, at most {MAX_FILE_BYTES} are accepted")
    if file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC:
        return _read_gguf_imatrix(read_gguf(path))
    return _LegacyReader(file).read()


def _read_gguf_imatrix(header: GgufHeader) -> ImatrixFile:
    name = header.path.name
    kind = header.metadata.get("general.type")
    if kind is None or kind.value != "imatrix":
        found = "missing" if kind is None else repr(kind.value)[:40]
        raise FormatError(
            f"{name}: general.type is {found}, expected 'imatrix'", hint="Give a file that llama-imatrix wrote."
        )
    if not header.tensors:
        raise FormatError(f"{name}: holds no entries")
    entries = {}
    for tensor, sums, counts in _pairs(header):
        entries[tensor] = _gguf_entry(f"{name}: entry {tensor!r}", sums, counts)
    chunks = header.metadata.get("imatrix.chunk_count")
    return ImatrixFile(header.path, entries, chunks.value if chunks and chunks.kind is ValueType.UINT32 else None)


def _pairs(header: GgufHeader) -> Iterator[tuple[str, GgufTensor, GgufTensor]]:
    """Yield name, sums and counts of every entry; each has both, and there is nothing else."""
    for name in header.tensors:
        stem, suffix = next(((name.removesuffix(s), s) for s in (_SUMS, _COUNTS) if name.endswith(s)), (name, None))
        if suffix is None:
            raise FormatError(f"{header.path.name}: tensor {name!r} ends neither in {_SUMS} nor in {_COUNTS}")
        other = stem + (_COUNTS if suffix == _SUMS else _SUMS)
        if other not in header.tensors:
            raise FormatError(f"{header.path.name}: tensor {name!r} is there, {other!r} is missing")
        if suffix == _SUMS:
            yield stem, header.tensors[name], header.tensors[other]


def _gguf_entry(where: str, sums: GgufTensor, counts: GgufTensor) -> ImatrixEntry:
    for tensor in (sums, counts):
        if tensor.ggml_type is not GgmlType.F32 or tensor.num_bytes > 4 * MAX_VALUES:
            raise FormatError(
                f"{where}: {tensor.name!r} is {tensor.ggml_type.name} of {tensor.num_bytes} bytes, "
                f"expected F32 of at most {4 * MAX_VALUES}"
            )
    values = _floats(where, "sums", sums.file.read(sums.offset, sums.num_bytes))
    tokens = _floats(where, "counts", counts.file.read(counts.offset, counts.num_bytes))
    for part, count in enumerate(tokens):
        if not count.is_integer():
            raise FormatError(f"{where}: counts[{part}] is {count:g}, expected a whole number")
    if len(values) % len(tokens):
        raise FormatError(f"{where}: has {len(values)} sums, no multiple of its {len(tokens)} counts")
    width = len(values) // len(tokens)
    for part, count in enumerate(tokens):
        for index in range(part * width, (part + 1) * width) if count > 0 else ():
            values[index] /= count
    return ImatrixEntry(values, len(tokens), frozenset(i for i, count in enumerate(tokens) if count == 0))


def _floats(where: str, what: str, data: bytes) -> array[float]:
    """Return little-endian f32 as an array; every one is finite and not negative."""
    values = array("f", data)
    if not math.isfinite(sum(values)) or min(values) < 0:
        bad = next(i for i, value in enumerate(values) if not (math.isfinite(value) and value >= 0))
        raise FormatError(f"{where}: {what}[{bad}] is {values[bad]:g}, expected a number of at least 0")
    return values


class _LegacyReader:
    """The binary format: the number of entries, then for each its name, calls, and sums over calls; then the number
    of chunks and the name of the text, which older files lack. All numbers are int32, values f32."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._name = file.path.name
        self._position = 0

    def read(self) -> ImatrixFile:
        entries: dict[str, ImatrixEntry] = {}
        for index in range(self._number("the number of entries", 1, MAX_ENTRIES)):
            name = self._entry_name(index)
            if name in entries:
                raise FormatError(f"{self._name}: entry {name!r} appears twice")
            entries[name] = self._entry(name)
        return ImatrixFile(self._file.path, entries, self._trailer())

    def _entry_name(self, index: int) -> str:
        what = f"the name of entry {index}"
        data = self._take(self._number(f"the length of {what}", 1, MAX_NAME_BYTES), what)
        try:
            name = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self._name}: {what} is not UTF-8") from error
        if not name.isprintable():
            raise FormatError(f"{self._name}: {what}, {name!r}, is not printable")
        return name

    def _entry(self, name: str) -> ImatrixEntry:
        where = f"entry {name!r}"
        calls = self._number(f"the number of calls of {where}", 0, (1 << 31) - 1)
        count = self._number(f"the number of values of {where}", 1, MAX_VALUES)
        values = _floats(f"{self._name}: {where}", "values", self._take(4 * count, where))
        if calls > 1:  # 0 means that the values are means already
            values = array("f", [value / calls for value in values])
        return ImatrixEntry(values)

    def _trailer(self) -> int | None:
        if self._position == self._file.size:
            return None
        chunks = self._number("the number of chunks", 0, (1 << 31) - 1)
        if self._position < self._file.size:
            length = self._number("the length of the text's name", 0, MAX_DATASET_BYTES)
            self._take(length, "the text's name")
        if self._position < self._file.size:
            raise FormatError(f"{self._name}: {self._file.size - self._position} bytes follow where it should end")
        return chunks

    def _number(self, what: str, low: int, high: int) -> int:
        (number,) = struct.unpack("<i", self._take(4, what))
        if not low <= number <= high:
            raise FormatError(
                f"{self._name}: {what} is {number}, expected {low} to {high}",
                hint="Give a file that llama-imatrix wrote.",
            )
        return int(number)

    def _take(self, num_bytes: int, what: str) -> bytes:
        if self._position + num_bytes > self._file.size:
            raise FormatError(
                f"{self._name}: {what} ends at byte {self._position + num_bytes} of a file of {self._file.size} bytes",
                hint="The file is truncated, or no file that llama-imatrix wrote.",
            )
        data = self._file.read(self._position, num_bytes)
        self._position += num_bytes
        return data
