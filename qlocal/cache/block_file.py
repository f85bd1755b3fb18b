"""A block of keys and values in a file of its own. docs/formats.md describes it byte by byte.

The header says in full what the content belongs to, and a reader holds it against what it expects: no file name, and no
hash alone, makes somebody else's keys and values ours.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlocal.errors import FormatError, SessionError
from qlocal.strict_json import parse_json_object

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"QLKVBLK1"
PAYLOAD_START = 4096
"""Where keys and values begin, at least: aligned to pages."""
MAX_HEADER_BYTES = 1 << 24
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class BlockHeader:
    """What a block belongs to. made_by: model, types, rotary scaling and block size by name. parent: the digest of the
    context before, as hexadecimal digits; token_ids: the block's own."""

    made_by: Mapping[str, str]
    parent: str
    token_ids: list[int]
    payload_bytes: int
    crc32: int

    def require(self, expected: Mapping[str, str], parent: str, token_ids: Sequence[int], path: Path) -> None:
        """Raise SessionError unless this is the block of this model that begins with these tokens in this context."""
        for name, value in expected.items():
            if self.made_by.get(name) != value:
                raise SessionError(f"{path.name} was made with {name} {self.made_by.get(name)!r}, expected {value!r}")
        if self.parent != parent or self.token_ids[: len(token_ids)] != list(token_ids):
            raise SessionError(f"{path.name} holds another conversation than its name says")


def write_block(
    path: Path, made_by: Mapping[str, str], parent: str, token_ids: Sequence[int], parts: Sequence[Tensor]
) -> int:
    """Write a block so that it is there whole or not at all; return the file's bytes. OSError when the disk refuses.

    parts: uint8 tensors on the host, as `BlockAccess.read_block` gives them."""
    views = [_view(part) for part in parts]
    crc = 0
    for view in views:
        crc = zlib.crc32(view, crc)
    payload_bytes = sum(view.nbytes for view in views)
    header = json.dumps(asdict(BlockHeader(dict(made_by), parent, list(token_ids), payload_bytes, crc))).encode()
    start = _payload_start(len(header))
    front = (MAGIC + _LENGTH.pack(len(header)) + header).ljust(start, b"\0")
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        # Buffers of a cache are larger than one call may write.
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as file:
            for piece in (memoryview(front), *views):
                _write_all(file.fileno(), piece)
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return start + payload_bytes


def read_header(path: Path) -> BlockHeader:
    """Return the header of a file. SessionError when it is none, OSError when it cannot be read."""
    with path.open("rb") as file:
        return _header(file.read(PAYLOAD_START), file.fileno(), path)[0]


def will_read(path: Path) -> None:
    """Have the system read a file from the disk meanwhile. One that is not there is noticed when it is read."""
    with suppress(OSError), path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def read_block(path: Path, parts: Sequence[Tensor]) -> BlockHeader:
    """Read keys and values into `parts`, on the host; return the header for the caller to check before they are used.

    SessionError for a file that is damaged or of another size, OSError when it cannot be read."""
    with path.open("rb", buffering=0) as file:
        header, start = _header(os.pread(file.fileno(), PAYLOAD_START, 0), file.fileno(), path)
        expected = sum(part.nbytes for part in parts)
        if header.payload_bytes != expected:
            raise SessionError(f"{path.name} holds {header.payload_bytes} bytes, expected {expected}")
        crc = 0
        for part in parts:
            start = _read_all(file.fileno(), _view(part), start, path)
            crc = zlib.crc32(_view(part), crc)
    if crc != header.crc32:
        raise SessionError(f"{path.name} is damaged: its checksum is {crc:08x}, expected {header.crc32:08x}")
    return header


def _header(begin: bytes, descriptor: int, path: Path) -> tuple[BlockHeader, int]:
    """Return the header, and where keys and values begin."""
    fixed = len(MAGIC) + _LENGTH.size
    if begin[: len(MAGIC)] != MAGIC or len(begin) < fixed:
        raise SessionError(f"{path.name} is no stored block")
    (length,) = _LENGTH.unpack(begin[len(MAGIC) : fixed])
    if length > MAX_HEADER_BYTES:
        raise SessionError(f"{path.name} announces a header of {length} bytes, the limit is {MAX_HEADER_BYTES}")
    text = begin[fixed : fixed + length]
    text += os.pread(descriptor, length - len(text), len(begin)) if length > len(text) else b""
    try:
        header = BlockHeader(**parse_json_object(text, path.name))
        is_sound = isinstance(header.made_by, dict) and isinstance(header.token_ids, list)
    except FormatError as error:
        raise SessionError(error.message) from error
    except TypeError as error:
        raise SessionError(f"{path.name} has a header that cannot be read: {error}") from error
    if not is_sound or type(header.payload_bytes) is not int or type(header.crc32) is not int:
        raise SessionError(f"{path.name} has a header with wrong fields")
    if any(type(token_id) is not int or not 0 <= token_id < 1 << 32 for token_id in header.token_ids):
        raise SessionError(f"{path.name} has a header with tokens that are none")
    start = _payload_start(length)
    if not 0 <= header.payload_bytes <= os.fstat(descriptor).st_size - start:
        raise SessionError(f"{path.name} ends before its block does")
    return header, start


def _payload_start(header_bytes: int) -> int:
    taken = len(MAGIC) + _LENGTH.size + header_bytes
    return -(-taken // PAYLOAD_START) * PAYLOAD_START


def _view(part: Tensor) -> memoryview:
    array: Any = part.numpy()
    return memoryview(array).cast("B")


def _write_all(descriptor: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(descriptor, piece) :]


def _read_all(descriptor: int, piece: memoryview, at: int, path: Path) -> int:
    """Fill `piece` from position `at` on; return where it ends."""
    while piece:
        count = os.preadv(descriptor, [piece], at)
        if count == 0:
            raise SessionError(f"{path.name} ends before its block does")
        piece, at = piece[count:], at + count
    return at
