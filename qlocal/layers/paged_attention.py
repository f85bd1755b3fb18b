"""Attention of one step over the block cache: new keys and values are stored, then every sequence reads its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.cache.storage import KVStorage
from qlocal.layers.attention import Attend, attend_sequence


@dataclass(frozen=True)
class TokenRun:
    """The tokens of one sequence in a step: `length` of them, after `num_past` that the cache holds already."""

    length: int
    num_past: int
    blocks: list[int]


def cut_runs(runs: Sequence[TokenRun], count: int) -> list[list[TokenRun]]:
    """Cut the tokens of a step into `count` parts of nearly the same length, in their order: computed one after another
    they leave what the whole step leaves. Parts without a token are left out."""
    num_tokens = sum(run.length for run in runs)
    ends = [num_tokens * (part + 1) // count for part in range(count)]
    parts: list[list[TokenRun]] = [[] for _ in ends]
    row, part = 0, 0
    for run in runs:
        done = 0
        while done < run.length:
            while ends[part] <= row:
                part += 1
            length = min(run.length - done, ends[part] - row)
            parts[part].append(TokenRun(length, run.num_past + done, run.blocks))
            done, row = done + length, row + length
    return [part for part in parts if part]


@dataclass(frozen=True)
class _Places:
    """Where the step's tokens are stored, on one device. blocks, offsets, positions: (T,) int64; tables: one a run."""

    blocks: Tensor
    offsets: Tensor
    positions: Tensor
    tables: list[Tensor]

    def to(self, device: torch.device) -> _Places:
        tables = [table.to(device) for table in self.tables]
        return _Places(self.blocks.to(device), self.offsets.to(device), self.positions.to(device), tables)


class PagedAttention:
    """Attention for the runs of one step, which stand one after another in T."""

    def __init__(self, runs: Sequence[TokenRun], storage: KVStorage, block_size: int) -> None:
        self._runs = runs
        self._storage = storage
        self._block_size = block_size
        positions = [torch.arange(run.num_past, run.num_past + run.length) for run in runs]
        self.positions = positions[0] if len(runs) == 1 else torch.cat(positions)
        """(T,) int64 on the CPU."""
        self._places: dict[torch.device, _Places] = {}

    def of_layer(self, layer: int) -> Attend:
        """Return the attention of decoder layer `layer`."""
        cache = self._storage.layers[layer]
        places = self._places_on(cache.device)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write(places.blocks, places.offsets, places.positions, k, v)
            outputs, start = [], 0
            for run, table in zip(self._runs, places.tables, strict=True):
                seen_k, seen_v = cache.read(table, run.num_past + run.length)
                outputs.append(attend_sequence(q[start : start + run.length], seen_k, seen_v))
                start += run.length
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return attend

    def _places_on(self, device: torch.device) -> _Places:
        if not self._places:
            self._places[torch.device("cpu")] = self._find_places()
        if device not in self._places:
            self._places[device] = self._places[torch.device("cpu")].to(device)
        return self._places[device]

    def _find_places(self) -> _Places:
        tables = [torch.tensor(run.blocks, dtype=torch.int64) for run in self._runs]
        positions = torch.split(self.positions, [run.length for run in self._runs])
        blocks = torch.cat([table[p // self._block_size] for table, p in zip(tables, positions, strict=True)])
        return _Places(blocks, self.positions % self._block_size, self.positions, tables)
