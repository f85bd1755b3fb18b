"""Write safetensors files of known content: the header first, then each tensor when it is ready.

A shard never lies in memory. Layout and limits as in `safetensors_file.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlocal.formats.preallocated_file import PreallocatedFile, tensor_bytes
from qlocal.formats.safetensors_file import ITEM_SIZES, TORCH_NAMES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorEntry:
    """What a file will hold: dtype by its safetensors name (`BF16`, `F16`, `F32`, `I32`), and the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        count = ITEM_SIZES[self.dtype]
        for dim in self.shape:
            count *= dim
        return count


@dataclass(frozen=True)
class Shard:
    """One file of several: its name and its tensors in order."""

    name: str
    entries: Mapping[str, TensorEntry]


class SafetensorsWriter:
    """One file. `write` each tensor once, in any order, then `close`; renaming the file is the caller's."""

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str] | None = None):
        """Lay the file out. metadata: defaults to {"format": "pt"}, which transformers asks for."""
        header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
        position = 0
        for name, entry in entries.items():
            end = position + entry.num_bytes
            header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
        self._entries = entries
        self._offsets = {n: 8 + len(text) + header[n]["data_offsets"][0] for n in entries}
        self._missing = set(entries)
        self._file = PreallocatedFile(path, 8 + len(text) + position)
        self._file.write(0, len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor; its dtype and shape are those of its entry."""
        entry = self._entries[name]
        found = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert found == (TORCH_NAMES[entry.dtype], entry.shape), f"{name}: {found} does not match its entry {entry}"
        self._file.write(self._offsets[name], tensor_bytes(tensor))
        self._missing.discard(name)

    def close(self) -> None:
        """Flush to disk; every tensor must have been written."""
        assert not self._missing, f"never written: {', '.join(sorted(self._missing)[:5])}"
        self._file.close()

    def abandon(self) -> None:
        """Close an unfinished file on the way out of an error."""
        self._file.abandon()


def plan_shards(entries: Mapping[str, TensorEntry], max_shard_bytes: int) -> list[Shard]:
    """Divide tensors, in order, into files of at most `max_shard_bytes` of data (a larger tensor stands alone)."""
    groups: list[dict[str, TensorEntry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        if groups[-1] and filled + entry.num_bytes > max_shard_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = entry
        filled += entry.num_bytes
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    return [Shard(f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors", group) for i, group in enumerate(groups)]


def index_json(shards: list[Shard]) -> bytes:
    """Return the content of model.safetensors.index.json; only several shards need it."""
    total = sum(entry.num_bytes for shard in shards for entry in shard.entries.values())
    weight_map = {name: shard.name for shard in shards for name in shard.entries}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
