"""Write GGUF v3 files of known content: header first, then each tensor (or each expert of one) when it is ready.

Tensors lie in llama-quantize's order. With a limit the tensors are divided over several files; the first holds
all metadata.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.formats import gguf_values as values
from qlocal.formats.gguf_values import DEFAULT_ALIGNMENT, MAGIC, MAX_NAME_BYTES, SCALAR_CODES, MetaValue, ValueType
from qlocal.formats.preallocated_file import PreallocatedFile, tensor_bytes
from qlocal.ggml_types import GgmlType, row_bytes

if TYPE_CHECKING:
    import torch

_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class GgufEntry:
    """A tensor that a file will hold. shape: the model's order (N, K), (N,) or (E, N, K) for stacked experts."""

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType

    @property
    def num_bytes(self) -> int:
        count = row_bytes(self.ggml_type, self.shape[-1])
        for dim in self.shape[:-1]:
            count *= dim
        return count


def file_order(entries: Sequence[GgufEntry]) -> list[GgufEntry]:
    """Return the entries as llama-quantize orders them: global ones, then by block number, then by name."""

    def key(entry: GgufEntry) -> tuple[int, str]:
        match = _BLOCK.match(entry.name)
        return (int(match[1]) if match else -1, entry.name)

    return sorted(entries, key=key)


class GgufWriter:
    """One file, or several parts. `write` every tensor, then `close`; renaming the files is the caller's."""

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, MetaValue],
        entries: Sequence[GgufEntry],
        max_shard_bytes: int | None = None,
    ) -> None:
        """Lay out `path`, or `<stem>-00001-of-0000N.gguf` beside it where the limit asks for several parts."""
        groups = _divide(file_order(entries), max_shard_bytes)
        self.paths = _part_paths(path, len(groups))
        self._entries = {entry.name: entry for entry in entries}
        assert len(self._entries) == len(entries), "every tensor has its own name"
        self._places: dict[str, tuple[PreallocatedFile, int]] = {}
        self._missing = {(e.name, i) for e in entries for i in range(_num_experts(e))}
        self._files: list[PreallocatedFile] = []
        for number, group in enumerate(groups):
            keys = dict(metadata) if number == 0 else {}
            if len(groups) > 1:
                keys |= _split_keys(number, len(groups), len(entries))
            self._lay_out(self.paths[number], keys, group)

    def write(self, name: str, data: torch.Tensor, expert: int = 0) -> None:
        """Write one tensor, or one expert of a stacked one: blocks (N, row_bytes) uint8, or floats of its type."""
        entry = self._entries[name]
        content = tensor_bytes(data)
        expected = entry.num_bytes // _num_experts(entry)
        assert len(content) == expected, f"{name}: {len(content)} bytes given, {entry} takes {expected}"
        file, offset = self._places[name]
        file.write(offset + expert * expected, content)
        self._missing.discard((name, expert))

    def close(self) -> None:
        """Flush to disk; every tensor must have been written."""
        assert not self._missing, f"never written: {sorted(self._missing)[:5]}"
        for file in self._files:
            file.close()

    def abandon(self) -> None:
        """Close unfinished files on the way out of an error."""
        for file in self._files:
            file.abandon()

    def _lay_out(self, path: Path, metadata: Mapping[str, MetaValue], group: list[GgufEntry]) -> None:
        header, starts, num_bytes = _layout(metadata, group)
        file = PreallocatedFile(path, num_bytes)
        self._files.append(file)
        file.write(0, header)
        self._places |= {name: (file, start) for name, start in starts.items()}


def file_bytes(metadata: Mapping[str, MetaValue], entries: Sequence[GgufEntry]) -> int:
    """Return how large a single file with these contents is."""
    return _layout(metadata, file_order(entries))[2]


def _layout(metadata: Mapping[str, MetaValue], entries: list[GgufEntry]) -> tuple[bytes, dict[str, int], int]:
    """Return the header of a file, where each tensor begins, and the bytes of the whole."""
    infos, offset = [], 0
    starts = {}
    for entry in entries:
        infos.append(_tensor_info(entry, offset))
        starts[entry.name] = offset
        offset = values.padded(offset + entry.num_bytes, DEFAULT_ALIGNMENT)
    keys = b"".join(encode_string(key) + encode_value(value) for key, value in metadata.items())
    header = MAGIC + struct.pack("<IQQ", 3, len(entries), len(metadata)) + keys + b"".join(infos)
    data_start = values.padded(len(header), DEFAULT_ALIGNMENT)
    return header, {name: data_start + start for name, start in starts.items()}, data_start + offset


def encode_string(text: str) -> bytes:
    """Return u64 length and UTF-8."""
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def encode_value(value: MetaValue) -> bytes:
    """Return a metadata value with its type in front."""
    if value.kind is not ValueType.ARRAY:
        return struct.pack("<I", value.kind) + _encode_plain(value.kind, [value.value])
    assert value.element is not None, "an array names the type of its elements"
    head = struct.pack("<IIQ", value.kind, value.element, len(value.value))
    return head + _encode_plain(value.element, value.value)


def _encode_plain(kind: ValueType, items: Sequence[object]) -> bytes:
    if kind is ValueType.STRING:
        return b"".join(encode_string(str(item)) for item in items)
    return struct.pack(f"<{len(items)}{SCALAR_CODES[kind]}", *items)


def _tensor_info(entry: GgufEntry, offset: int) -> bytes:
    assert len(entry.name.encode()) <= MAX_NAME_BYTES, f"{entry.name} is too long for llama.cpp"
    dims = entry.shape[::-1]
    return encode_string(entry.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, entry.ggml_type, offset)


def _num_experts(entry: GgufEntry) -> int:
    return entry.shape[0] if len(entry.shape) == 3 else 1


def _divide(entries: list[GgufEntry], max_bytes: int | None) -> list[list[GgufEntry]]:
    groups: list[list[GgufEntry]] = [[]]
    filled = 0
    for entry in entries:
        if max_bytes is not None and groups[-1] and filled + entry.num_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.num_bytes
    return groups


def _part_paths(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    return [path.with_name(f"{path.name.removesuffix('.gguf')}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def _split_keys(number: int, count: int, num_tensors: int) -> dict[str, MetaValue]:
    return {
        "split.no": values.uint16(number),
        "split.count": values.uint16(count),
        "split.tensors.count": values.int32(num_tensors),
    }
