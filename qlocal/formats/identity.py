"""Which weights a checkpoint holds, without reading all of them: what was computed by them is no other model's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
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
        stride = max(_LEAST_STRIDE, status.st_size // _MOST_PIECES)
        with path.open("rb", buffering=0) as file:
            for at in range(0, status.st_size, stride):
                file.seek(at)
                found.update(file.read(_PIECE))
    return found.hexdigest()
