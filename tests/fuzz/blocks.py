"""Damaged files of kept conversations: blocks, sessions. What is read is whole numbers and lies within its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import torch

from qlocal.cache.block_file import read_block, read_header, write_block
from qlocal.cache.block_pool import content_after
from tests.fuzz.lies import Liar

_MADE_BY = {"weights": "a", "keys and values": "q8,q4"}
_PART_BYTES = 64


def reader(folder: Path, put: Callable[[bytes], Path]) -> Callable[[Random], bool]:
    """Return what makes and reads one case. put: writes a file and returns its path."""
    folder.mkdir()
    parts = [torch.arange(_PART_BYTES, dtype=torch.uint8)]
    write_block(folder / "block", _MADE_BY, "0" * 32, [1, 2, 70_000], parts)
    write_block(folder / "session", _MADE_BY | {"model": "m"}, "", list(range(300)), parts)
    seeds = [(folder / name).read_bytes() for name in ("block", "session")]

    def read(rng: Random) -> bool:
        data, liar = rng.choice(seeds), Liar(rng, 1.0)
        at = rng.choice((len(data), 600))  # half of the damage is where the header lies
        for _ in range(rng.randrange(1, 4)):
            data = liar.damaged(data[:at]) + data[at:]
        if rng.random() < 0.02:
            data = data[:12] + b"[" * 4000 + data[4012:]
        path = put(data)
        header = read_header(path)
        assert 0 <= header.payload_bytes <= len(data)
        content_after(b"", header.token_ids)
        header.require(_MADE_BY, header.parent, header.token_ids, path)
        read_block(path, [torch.empty_like(parts[0])])
        return True

    return read
