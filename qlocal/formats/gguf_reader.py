"""The header of a GGUF v3 file (or of all parts of a split one), read without trusting a single number in it.

Every count and length is held against the bytes that are left before anything is allocated; arrays of arrays are
refused, so nothing recurses. Says where tensors lie; what keys and tensors mean is `gguf_metadata.py`'s.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlocal.errors import FormatError, UnsupportedError
from qlocal.formats.gguf_values import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_NAME_BYTES,
    SCALAR_CODES,
    MetaValue,
    ValueType,
    padded,
)
from qlocal.formats.mapped_file import MappedFile
from qlocal.ggml_types import LAYOUTS, GgmlType, row_bytes

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 << 20
MAX_HEADER_BYTES = 32 << 20
"""The largest real headers have 12 MB. In memory text may take four times as much, and refusing 256 MiB at most."""
MAX_ARRAY_ELEMENTS = 3 << 19
"""All arrays of a file together; the largest vocabularies with their merges have about a million."""
MAX_DIM = 1 << 40
MAX_SPLITS = 1024
_FIRST_READ = 4 << 20
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_TRUNCATED = "The file is truncated or damaged; fetch it again."


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. shape: the model's order (dims reversed); offset: bytes from the start of `file`."""

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType
    num_bytes: int
    offset: int
    file: MappedFile


@dataclass(frozen=True)
class GgufHeader:
    """Metadata of the first part, tensors of all parts in file order, and the files."""

    path: Path
    metadata: Mapping[str, MetaValue]
    tensors: Mapping[str, GgufTensor]
    files: tuple[Path, ...] = field(default=())


def read_gguf(path: Path) -> GgufHeader:
    """Return the header of `path`; of a split file, the first part is given and the others are found by name."""
    first = _read_part(MappedFile(path, follow_links=True))
    count = _split_number(first, "split.count", default=1)
    if count == 1:
        return GgufHeader(path, first.metadata, first.tensors, (path,))
    parts = [first, *_other_parts(path, first, count)]
    tensors: dict[str, GgufTensor] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise FormatError(f"{part.file.path.name}: tensor {name!r} lies in an earlier part too")
            tensors[name] = tensor
    total = _split_number(first, "split.tensors.count", default=len(tensors))
    if total != len(tensors):
        raise FormatError(f"{path.name}: split.tensors.count is {total}, the {count} parts hold {len(tensors)}")
    return GgufHeader(path, first.metadata, tensors, tuple(p.file.path for p in parts))


@dataclass(frozen=True)
class _Part:
    file: MappedFile
    metadata: dict[str, MetaValue]
    tensors: dict[str, GgufTensor]


def _other_parts(path: Path, first: _Part, count: int) -> list[_Part]:
    """Open parts 2.. of a split file; their names are made from the first one's, never read from a file."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if _split_number(first, "split.no", default=0) != 0 or (match and int(match[2]) != 1):
        raise FormatError(f"{path.name}: is not the first part of a split file", hint="Give part 00001.")
    if match is None or int(match[3]) != count or count > MAX_SPLITS:
        raise FormatError(
            f"{path.name}: split.count is {count}, so the name must end in -00001-of-{count:05d}.gguf",
            hint=f"Give the parts their original names; at most {MAX_SPLITS} parts are read.",
        )
    parts, seen = [], {first.file.identity}
    for number in range(1, count):
        name = f"{match[1]}-{number + 1:05d}-of-{count:05d}.gguf"
        part = _read_part(MappedFile(path.parent / name))
        if part.file.identity in seen:
            raise FormatError(f"{name}: is the same file as an earlier part")
        seen.add(part.file.identity)
        found = (_split_number(part, "split.no", default=-1), _split_number(part, "split.count", default=-1))
        if found != (number, count):
            raise FormatError(f"{name}: says it is part {found[0]} of {found[1]}, expected part {number} of {count}")
        parts.append(part)
    return parts


def _split_number(part: _Part, key: str, default: int) -> int:
    value = part.metadata.get(key)
    if value is None:
        return default
    if type(value.value) is not int:
        raise FormatError(f"{part.file.path.name}: {key} is no whole number")
    return value.value


class _NeedMoreBytes(Exception):
    """The header goes on behind the bytes that were read so far."""


def _read_part(file: MappedFile) -> _Part:
    """Parse one file. The header's length is written nowhere: on running out, more is read and parsed anew."""
    for length in (_FIRST_READ, MAX_HEADER_BYTES):
        try:
            return _parse(_Cursor(file.read(0, min(file.size, length)), file))
        except _NeedMoreBytes:
            continue  # with nothing of the first attempt in memory
    raise FormatError(f"{file.path.name}: the header has more than {MAX_HEADER_BYTES} bytes")


def _parse(cursor: _Cursor) -> _Part:
    name = cursor.file.path.name
    if cursor.take(4) != MAGIC:
        raise FormatError(f"{name}: is not a GGUF file: it does not begin with 'GGUF'")
    version = cursor.scalar(ValueType.UINT32)
    if version not in (2, 3):
        raise UnsupportedError(f"{name}: GGUF version {version} is not supported", hint="Supported: 2 and 3.")
    num_tensors = cursor.count("tensors", minimum_bytes=24, limit=MAX_TENSORS)
    num_keys = cursor.count("keys", minimum_bytes=13, limit=MAX_KEYS)
    metadata = _metadata(cursor, num_keys)
    infos = _tensor_infos(cursor, num_tensors)
    return _Part(cursor.file, metadata, _place_tensors(cursor, infos, _alignment(metadata, name)))


class _Cursor:
    """A position in the first bytes of a file. A length is first held against the file, then against the bytes."""

    def __init__(self, data: bytes, file: MappedFile) -> None:
        self.data = data
        self.file = file
        self.position = 0
        self.elements_left = MAX_ARRAY_ELEMENTS

    def need(self, num_bytes: int) -> None:
        """Make sure that `num_bytes` are there."""
        if self.position + num_bytes > self.file.size:
            raise FormatError(
                f"{self.file.path.name}: {num_bytes} bytes expected at byte {self.position} "
                f"of a file of {self.file.size} bytes",
                hint=_TRUNCATED,
            )
        if self.position + num_bytes > len(self.data):
            raise _NeedMoreBytes

    def take(self, num_bytes: int) -> bytes:
        self.need(num_bytes)
        start = self.position
        self.position += num_bytes
        return self.data[start : self.position]

    def scalar(self, kind: ValueType) -> Any:
        code = SCALAR_CODES[kind]
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))
        return value

    def string(self, what: str, limit: int) -> str:
        length = self.scalar(ValueType.UINT64)
        if length > limit:
            raise FormatError(f"{self.file.path.name}: {what} has {length} bytes, at most {limit} are accepted")
        return self.text(self.take(length), what)

    def text(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.file.path.name}: {what} is not UTF-8") from error

    def count(self, what: str, minimum_bytes: int, limit: int) -> int:
        """Read a number of items that take at least `minimum_bytes` each."""
        number: int = self.scalar(ValueType.UINT64)
        if number > limit:
            raise FormatError(f"{self.file.path.name}: says it holds {number} {what}, at most {limit} are accepted")
        if number * minimum_bytes > self.file.size - self.position:
            raise FormatError(
                f"{self.file.path.name}: says it holds {number} {what}, more than its {self.file.size} bytes can",
                hint=_TRUNCATED,
            )
        return number


def _metadata(cursor: _Cursor, num_keys: int) -> dict[str, MetaValue]:
    name = cursor.file.path.name
    values: dict[str, MetaValue] = {}
    for _ in range(num_keys):
        key = cursor.string("a key", MAX_KEY_BYTES)
        if not key or not key.isprintable():
            raise FormatError(f"{name}: key {key[:60]!r} is empty or not printable")
        if key in values:
            raise FormatError(f"{name}: key '{key[:60]}' appears twice")
        kind = _value_type(cursor, key)
        if kind is ValueType.ARRAY:
            values[key] = _array(cursor, key)
        elif kind is ValueType.STRING:
            values[key] = MetaValue(kind, cursor.string(f"'{key[:60]}'", MAX_STRING_BYTES))
        else:
            values[key] = MetaValue(kind, cursor.scalar(kind))
    return values


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    number = cursor.scalar(ValueType.UINT32)
    if number > ValueType.FLOAT64:
        raise FormatError(f"{cursor.file.path.name}: '{key[:60]}' has the unknown value type {number}")
    return ValueType(number)


def _array(cursor: _Cursor, key: str) -> MetaValue:
    element = _value_type(cursor, key)
    if element is ValueType.ARRAY:
        raise FormatError(f"{cursor.file.path.name}: '{key[:60]}' is an array of arrays, which GGUF readers refuse")
    code = SCALAR_CODES.get(element)
    width = struct.calcsize("<" + code) if code else 8
    count = cursor.count(f"elements in '{key[:60]}'", width, cursor.elements_left)
    cursor.elements_left -= count
    if code is None:
        return MetaValue(ValueType.ARRAY, _strings(cursor, key, count), element)
    return MetaValue(ValueType.ARRAY, list(struct.unpack(f"<{count}{code}", cursor.take(count * width))), element)


def _strings(cursor: _Cursor, key: str, count: int) -> list[str]:
    """Read `count` strings. A vocabulary has hundreds of thousands, so this loop is written out."""
    data, position, end = cursor.data, cursor.position, len(cursor.data)
    read_length = struct.Struct("<Q").unpack_from
    strings = []
    try:
        for _ in range(count):
            start = position + 8
            if start > end:
                break
            position = start + read_length(data, position)[0]
            if position > end:
                break
            strings.append(data[start:position].decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FormatError(f"{cursor.file.path.name}: '{key[:60]}' [{len(strings)}] is not UTF-8") from error
    if len(strings) < count:
        cursor.need(max(position, start) - cursor.position)
    cursor.position = position
    return strings


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    dims: tuple[int, ...]
    ggml_type: GgmlType
    offset: int


def _tensor_infos(cursor: _Cursor, num_tensors: int) -> list[_TensorInfo]:
    infos, names = [], set()
    for _ in range(num_tensors):
        name = cursor.string("a tensor name", MAX_NAME_BYTES)
        where = f"{cursor.file.path.name}: tensor {name!r}"
        if not name or not name.isprintable() or name in names:
            raise FormatError(f"{where}: the name is empty, not printable or appears twice")
        names.add(name)
        infos.append(_TensorInfo(name, *_dims_and_type(cursor, where), cursor.scalar(ValueType.UINT64)))
    return infos


def _dims_and_type(cursor: _Cursor, where: str) -> tuple[tuple[int, ...], GgmlType]:
    num_dims = cursor.scalar(ValueType.UINT32)
    if not 1 <= num_dims <= 4:
        raise FormatError(f"{where}: has {num_dims} dimensions, expected 1 to 4")
    dims = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims))
    if not all(1 <= dim <= MAX_DIM for dim in dims):
        raise FormatError(f"{where}: has the dimensions {dims}, expected 1 to 2^40 each")
    number = cursor.scalar(ValueType.UINT32)
    if number not in GgmlType.__members__.values():
        raise UnsupportedError(
            f"{where}: GGML type {number} is not supported",
            hint=f"Supported: {', '.join(t.name for t in GgmlType)}.",
        )
    ggml_type = GgmlType(number)
    block_size = LAYOUTS[ggml_type].block_size
    if dims[0] % block_size:
        raise FormatError(f"{where}: rows of {dims[0]} elements are no multiple of {ggml_type.name}'s {block_size}")
    return dims, ggml_type


def _alignment(metadata: Mapping[str, MetaValue], name: str) -> int:
    value = metadata.get("general.alignment")
    if value is None:
        return DEFAULT_ALIGNMENT
    size = value.value
    if value.kind is not ValueType.UINT32 or not 8 <= size <= 65_536 or size & (size - 1):
        raise FormatError(f"{name}: general.alignment is {str(size)[:40]}, expected a power of two from 8 to 65536")
    return int(size)


def _place_tensors(cursor: _Cursor, infos: list[_TensorInfo], alignment: int) -> dict[str, GgufTensor]:
    """Hold offsets and sizes against the file: each tensor begins where the padded one before ends."""
    file = cursor.file
    data_start = padded(cursor.position, alignment)
    expected = 0
    tensors = {}
    for info in infos:
        where = f"{file.path.name}: tensor {info.name!r}"
        if info.offset != expected:
            raise FormatError(f"{where}: lies at byte {info.offset} of the data, expected {expected}")
        num_bytes = row_bytes(info.ggml_type, info.dims[0])
        for dim in info.dims[1:]:
            num_bytes *= dim
        start = data_start + info.offset
        if start + num_bytes > file.size:
            raise FormatError(
                f"{where}: ends at byte {start + num_bytes}, the file has {file.size} bytes", hint=_TRUNCATED
            )
        tensors[info.name] = GgufTensor(info.name, info.dims[::-1], info.ggml_type, num_bytes, start, file)
        expected = padded(info.offset + num_bytes, alignment)
    return tensors
