"""A new file of known size, written at any offset in any order, and complete only when every byte was written.

What is never written stays zero, which is the padding of all our formats. Renaming into place is the caller's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import PlanError

if TYPE_CHECKING:
    import torch


class PreallocatedFile:
    """An open file of exactly `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        """Create (or empty) `path`. PlanError when the disk or the file system does not allow it."""
        self.path = path
        try:
            self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`."""
        assert self._fd is not None, f"{self.path.name} is closed"
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view[: 1 << 30], offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Wait until all bytes are on the disk, and close."""
        assert self._fd is not None, f"{self.path.name} is closed already"
        fd, self._fd = self._fd, None
        try:
            os.fsync(fd)
        except OSError as error:
            raise self._failure(error) from error
        finally:
            os.close(fd)

    def abandon(self) -> None:
        """Close without caring for the content; for the way out of an error."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _failure(self, error: OSError) -> PlanError:
        return PlanError(
            f"{self.path.name}: cannot be written: {error.strerror}",
            hint="Free space on that disk, or choose another place.",
        )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor of any dtype and device in row order; a CPU tensor is not copied."""
    import torch  # heavy, and only needed with a tensor at hand

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
