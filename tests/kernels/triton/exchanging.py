"""One rank of an exchange, interpreted, in a process of its own: `python -m tests.kernels.triton.exchanging` and what
follows. Writes the residual streams after every turn, and what was normed, to OUT."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH, ROWS = 96, 4
TOKENS = (1, 3, 1, 4, 2)
"""Of the turns, one after another."""


def given(turn: int, rank: int, tokens: int) -> torch.Tensor:
    """Return the parts (2, T, WIDTH) of a rank."""
    generator = torch.Generator().manual_seed(100 * turn + rank)
    return torch.randn(2, tokens, WIDTH, generator=generator)


def mailbox_memory(path: Path, ranks: int, wire: torch.dtype) -> torch.Tensor:
    """Return the packets that the file at `path` holds."""
    per_row = WIDTH // 2 if wire == torch.bfloat16 else WIDTH
    shape = (ranks, 2, ROWS, per_row)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 8 * ranks * 2 * ROWS * per_row)
    return torch.frombuffer(memory, dtype=torch.int64).view(shape)


def main(path: str, rank: str, ranks: str, wire: str, turns: str, patience: str, out: str) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from qlocal.kernels.triton.exchange import Mailbox, exchange_add_norm

    wire_dtype = getattr(torch, wire)
    packets = mailbox_memory(Path(path), int(ranks), wire_dtype)
    mailbox = Mailbox(packets, torch.zeros(ROWS, dtype=torch.int32), int(rank), wire_dtype)
    weight, made = torch.linspace(0.5, 2.0, WIDTH), dict[str, torch.Tensor]()
    for turn in range(int(turns)):
        tokens = TOKENS[turn % len(TOKENS)]
        stream = torch.ones(tokens, WIDTH)
        parts = given(turn, int(rank), tokens)
        normed = exchange_add_norm(stream, parts, weight, 1e-6, torch.float32, mailbox, int(patience))
        made |= {f"stream {turn}": stream, f"normed {turn}": normed}
    save_file(made, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
