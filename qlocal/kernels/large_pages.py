"""Memory in pages of 2 MB, where Linux has them: what is read from end to end for every token is read faster there."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_LARGE_PAGE = 2 << 20


def zeros(num_bytes: int) -> Tensor:
    """Return (num_bytes,) uint8 zeros on the CPU, straight from the system.

    Memory that malloc had before has its small pages already, and keeps them."""
    if num_bytes < _LARGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_bytes, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel without such pages refuses; small ones are as correct.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % _LARGE_PAGE :][:num_bytes]
