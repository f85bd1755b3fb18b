"""The residual stream of all calibration samples between two layers: float32 in a mapped scratch file.

A file, because the state after the last finished layer is what a restart needs, and because the system keeps its
pages in memory as long as there is room: 128 x 2048 tokens of width 8192 are 8.6 GB. Float32, as the engine keeps
its residual stream; values near 1,900 stand beside small ones there.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from quantize.state import disk_error


class HiddenStates:
    """(S, L, D) f32, mapped from `path`. S samples of L tokens, width D."""

    def __init__(self, path: Path, shape: tuple[int, int, int], *, create: bool = False) -> None:
        self.path = path
        self.shape = shape
        size = shape[0] * shape[1] * shape[2]
        if create:
            try:
                with path.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size * 4)  # a full disk shows here, not as SIGBUS on a page
            except OSError as error:
                raise disk_error(path, error) from error
        self._values = torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, samples: int | slice) -> Tensor:
        """Return (L, D) f32, or (B, L, D) for several samples, as a view of the file: not to be written to."""
        return self._values[samples]

    def __setitem__(self, samples: int | slice, states: Tensor) -> None:
        self._values[samples] = states

    def publish(self, path: Path) -> None:
        """Write everything through to the disk, then move the file to `path` in one step."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(path)
        self.path = path

    def remove(self) -> None:
        """Delete the file; the map lives as long as this object."""
        self.path.unlink(missing_ok=True)
