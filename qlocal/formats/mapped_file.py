"""A file opened once: its size from fstat of the very descriptor that is read and mapped.

Only regular files are opened, never a FIFO or device, and links only where the Hub's cache makes them. Knows no format.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import re
import stat
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import FormatError

if TYPE_CHECKING:
    import torch

_COPY_BYTES = 8 << 20
_HUB_LINK = re.compile(r"\.\./\.\./blobs/[0-9a-f]{40}(?:[0-9a-f]{24})?")


class MappedFile:
    """A read-only file. Headers are read with `read`; tensors are views of the map made at the first `tensor`."""

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        """Open `path`; a link is refused unless it is the Hub cache's, or `follow_links` (a path the user typed)."""
        self.path = path
        fd = _open_regular(path, follow_links)
        weakref.finalize(self, os.close, fd)
        self._fd = fd
        self._version = _version(fd)
        self.size = self._version[0]
        self._map: mmap.mmap | None = None

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two names of one file."""
        status = os.fstat(self._fd)
        return (status.st_dev, status.st_ino)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return exactly `num_bytes` from `offset`; FormatError when the file ends before."""
        parts, position = [], offset
        while position < offset + num_bytes:
            try:
                part = os.pread(self._fd, min(offset + num_bytes - position, 1 << 30), position)
            except OSError as error:
                raise FormatError(f"{self.path.name}: cannot be read: {error.strerror}") from error
            if not part:
                raise FormatError(
                    f"{self.path.name}: ends at byte {position}, expected {offset + num_bytes} bytes",
                    hint="The file is truncated; fetch it again.",
                )
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def will_read(self, offset: int, num_bytes: int) -> None:
        """Ask the system to bring a range from the disk, and return at once: faults alone ask for little at a time."""
        os.posix_fadvise(self._fd, offset, num_bytes, os.POSIX_FADV_WILLNEED)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], offset: int) -> torch.Tensor:
        """Return `shape` elements of `dtype` at byte `offset` as a view of the map: never write to it.

        The caller has checked the range against `size`. An offset that the element size does not divide is copied.
        """
        import torch  # heavy, and opening a checkpoint does without

        _expect_read_only_buffers()
        self._check_unchanged()
        if self._map is None:
            try:
                self._map = mmap.mmap(self._fd, self.size, access=mmap.ACCESS_READ)
            except OSError as error:
                raise FormatError(f"{self.path.name}: cannot be mapped: {error.strerror}") from error
        count = 1
        for dim in shape:
            count *= dim
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            return raw.clone().view(dtype).reshape(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).reshape(shape)

    def _check_unchanged(self) -> None:
        """Refuse a file that was cut off or written to since it was opened: behind its end the map has no memory."""
        now = _version(self._fd)
        if now != self._version:
            raise FormatError(
                f"{self.path.name}: was changed while it was read: it had {self.size} bytes, now it has {now[0]}",
                hint="Leave the file alone and start again.",
            )


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file of at most `max_bytes`; FormatError when it is larger."""
    file = MappedFile(path)
    if file.size > max_bytes:
        raise FormatError(f"{path.name}: has {file.size} bytes, at most {max_bytes} are accepted")
    return file.read(0, file.size)


def copy_file(source: Path, target: Path) -> None:
    """Copy what `MappedFile` would open, and nothing that a link in a stranger's folder leads to; to the disk."""
    file = MappedFile(source)
    with target.open("wb") as copy:
        for offset in range(0, file.size, _COPY_BYTES):
            copy.write(file.read(offset, min(_COPY_BYTES, file.size - offset)))
        copy.flush()
        os.fsync(copy.fileno())


def _version(fd: int) -> tuple[int, int]:
    """Return size and time of an open file: together they tell whether it was written to."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def _open_regular(path: Path, follow_links: bool) -> int:
    """Return a descriptor of a regular file; O_NONBLOCK so that a FIFO cannot hold us."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        target = path if follow_links or not path.is_symlink() else _hub_target(path)
        fd = os.open(target, flags if follow_links else flags | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) == errno.ELOOP:
            reason = "it is a link"
        raise FormatError(f"{path.name}: cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FormatError(f"{path.name}: is not a regular file")
    return fd


def _hub_target(path: Path) -> Path:
    """Return what a link of the Hub's cache points to (`../../blobs/<hash>`); any other link is refused."""
    link = str(path.readlink())
    if not _HUB_LINK.fullmatch(link):
        raise FormatError(
            f"{path.name}: is a link to {link!r}; only links into the Hub cache's blobs are followed",
            hint="Put the file itself into the folder.",
        )
    return path.parent / link


@functools.cache
def _expect_read_only_buffers() -> None:
    """Spend torch's one warning of the process about read-only buffers; DenseWeight's contract forbids writing."""
    import torch  # heavy, see above

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0", dtype=torch.uint8)
