"""Which weights a checkpoint holds, without reading all of them: what was computed by them is no other model's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PIECE = 4096
_LEAST_STRIDE, _MOST_PIECES = 1 << 20, 4096


def weights_identity(files: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of files and of pieces from all over them, as hexadecimal digits.

    A file that was written again, with whatever it holds, is another one. OSError when one cannot be read."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        status = path.stat()
        found.update(f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode())
        for piece in _pieces(path, max(_LEAST_STRIDE, status.st_size // _MOST_PIECES)):
            found.update(piece)
    return found.hexdigest()


def content_identity(files: Iterable[Path]) -> str:
    """Return a hash of what files hold, wherever they lie and whenever they were written: of their sizes, of their ends
    and of pieces from all over them, as hexadecimal digits.

    At most some 4,096 pieces are read of a model, so that its hash costs less than a second; a change of a few bytes
    between two of them is not seen. OSError when a file cannot be read."""
    paths = sorted(files)
    sizes = [path.stat().st_size for path in paths]
    stride = max(_LEAST_STRIDE, sum(sizes) // _MOST_PIECES)
    found = hashlib.blake2b(digest_size=16)
    for path, size in zip(paths, sizes, strict=True):
        found.update(f"{size} ".encode())
        for piece in _pieces(path, stride):
            found.update(piece)
        with path.open("rb", buffering=0) as file:
            file.seek(max(0, size - _PIECE))
            found.update(file.read(_PIECE))
    return found.hexdigest()


def _pieces(path: Path, stride: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        for at in range(0, path.stat().st_size, stride):
            file.seek(at)
            yield file.read(_PIECE)
