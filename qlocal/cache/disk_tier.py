"""Blocks on disk: conversations go on where they were after the server was ended, or after others took their place.

A file a block, named by its digest, its context's digest and its number of tokens, so that a folder's listing is the
index. The least recently used files go when the quota is full.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qlocal.cache.block_file import read_block, read_header, will_read, write_block
from qlocal.cache.block_pool import Content, common_prefix
from qlocal.cache.host_tier import BlockParts
from qlocal.errors import SessionError

log = logging.getLogger(__name__)
SUFFIX = ".kv"
FREE_BYTES = 1 << 30
"""Of the disk, which are left to others whatever the quota says."""
STALE_PART_S = 3600.0
"""Age at which the beginning of a file that was never finished belongs to nobody."""


@dataclass
class _Entry:
    path: Path
    parent: str
    num_tokens: int
    num_bytes: int
    used_at: float


class DiskTier:
    """The blocks of one model in a folder, which other models may share: their names differ, as digests do."""

    def __init__(
        self, folder: Path, made_by: Mapping[str, str], block_parts: BlockParts, block_bytes: int, max_bytes: int
    ) -> None:
        """made_by: as in `BlockHeader`. max_bytes: of the whole folder. OSError when the folder cannot be made."""
        self._folder = folder
        self._made_by = made_by
        self._block_parts = block_parts
        self._block_bytes = block_bytes
        self._max_bytes = max_bytes
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries = _scan(folder)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, other models' included."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def holds(self, content: Content) -> bool:
        """See `Tier.holds`."""
        return content.digest.hex() in self._entries

    def will_load(self, contents: Sequence[Content]) -> None:
        """See `Tier.will_load`: the disk reads on while what has come is checked."""
        for content in contents:
            entry = self._entries.get(content.digest.hex())
            if entry is not None:
                will_read(entry.path)

    def load(self, content: Content, block: int) -> bool:
        """See `Tier.load`. What is damaged, or is not what its name says, is told to the log and removed."""
        entry = self._entries.get(content.digest.hex())
        if entry is None:
            return False
        try:
            header = read_block(entry.path, self._block_parts(block))
            header.require(self._made_by, content.parent.hex(), content.token_ids, entry.path)
        except (SessionError, OSError) as error:
            log.warning("%s; its %s tokens are computed again", error, len(content.token_ids))
            self._remove(content.digest.hex())
            return False
        self._touch(entry)
        return True

    def longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[Content, int] | None:
        """See `Tier.longest`."""
        best: tuple[Content, int] | None = None
        for digest, entry in list(self._entries.items()):
            if entry.parent != parent.hex():
                continue
            try:
                header = read_header(entry.path)
                header.require(self._made_by, entry.parent, [], entry.path)
            except (SessionError, OSError) as error:
                log.warning("%s; it is removed", error)
                self._remove(digest)
                continue
            length = common_prefix(header.token_ids, token_ids)
            if length > (best[1] if best else 0):
                best = Content(parent, tuple(header.token_ids), bytes.fromhex(digest)), length
        return best

    def keep(self, content: Content, block: int) -> None:
        """See `Tier.keep`; a disk that refuses is told to the log."""
        self.keep_parts(content, self._block_parts(block))

    def keep_parts(self, content: Content, parts: Sequence[Tensor], spare_since: float | None = None) -> bool:
        """Write a block that is not there yet. spare_since: remove nothing for it that was used since then; False where
        there is no room so, or the disk refuses."""
        if self.holds(content):
            return True
        if not self._make_room(self._block_bytes, spare_since):
            return False
        name = f"{content.digest.hex()}-{content.parent.hex()}-{len(content.token_ids)}{SUFFIX}"
        path = self._folder / name
        try:
            num_bytes = write_block(path, self._made_by, content.parent.hex(), content.token_ids, parts)
        except OSError as error:
            log.warning("a block of a conversation cannot be stored in %s: %s", self._folder, error)
            return False
        self._entries[content.digest.hex()] = _Entry(
            path, content.parent.hex(), len(content.token_ids), num_bytes, time.time()
        )
        self._drop_beginnings(content)
        return True

    def _drop_beginnings(self, content: Content) -> None:
        """Remove blocks that are the beginning of this one: a conversation's last block as it was before it grew."""
        parent = content.parent.hex()
        shorter = [
            (digest, entry)
            for digest, entry in self._entries.items()
            if entry.parent == parent and entry.num_tokens < len(content.token_ids)
        ]
        for digest, entry in shorter:
            try:
                header = read_header(entry.path)
            except (SessionError, OSError):  # what cannot be read is no loss
                self._remove(digest)
                continue
            if list(content.token_ids[: len(header.token_ids)]) == header.token_ids:
                self._remove(digest)

    def _make_room(self, num_bytes: int, spare_since: float | None) -> bool:
        total = self.num_bytes
        for digest, entry in sorted(self._entries.items(), key=lambda item: item[1].used_at):
            if total + num_bytes <= self._max_bytes:
                break
            if spare_since is not None and entry.used_at >= spare_since:
                return False
            total -= entry.num_bytes
            self._remove(digest)
        has_space = shutil.disk_usage(self._folder).free >= num_bytes + FREE_BYTES
        return has_space and total + num_bytes <= self._max_bytes

    def _touch(self, entry: _Entry) -> None:
        entry.used_at = time.time()
        try:
            os.utime(entry.path)
        except OSError as error:
            log.info("%s keeps its time: %s", entry.path.name, error)

    def _remove(self, digest: str) -> None:
        entry = self._entries.pop(digest)
        entry.path.unlink(missing_ok=True)


def _scan(folder: Path) -> dict[str, _Entry]:
    """Return what a folder holds, and remove what a server that was killed has left unfinished."""
    entries: dict[str, _Entry] = {}
    for path in folder.iterdir():
        try:
            status = path.stat()
        except OSError:  # another server has just removed it
            continue
        if path.suffix == ".part" and time.time() - status.st_mtime > STALE_PART_S:
            path.unlink(missing_ok=True)
        elif path.suffix == SUFFIX and (name := _parsed(path.stem)) is not None:
            digest, parent, num_tokens = name
            entries[digest] = _Entry(path, parent, num_tokens, status.st_size, status.st_mtime)
    return entries


def _parsed(stem: str) -> tuple[str, str, int] | None:
    parts: Iterable[str] = stem.split("-")
    match list(parts):
        case [digest, parent, count] if len(digest) == len(parent) == 32 and count.isdecimal():
            return digest, parent, int(count)
    return None
