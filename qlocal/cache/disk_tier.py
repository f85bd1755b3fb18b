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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlocal.cache.block_file import read_block, read_header, will_read, write_block
from qlocal.cache.block_pool import Content, common_prefix
from qlocal.cache.saved_session import DIGEST_BYTES, session_files, with_model
from qlocal.cache.tiers import BlockAccess
from qlocal.errors import SessionError

log = logging.getLogger(__name__)
SUFFIX = ".kv"
FREE_BYTES = 1 << 30
"""Of the disk, which are left to others whatever the quota says."""
MIN_TOKENS = 256
"""Of a context with its block: a shorter one is computed again as quickly, and most questions are one."""
STALE_PART_S = 3600.0
"""Age at which the beginning of a file that was never finished belongs to nobody."""


@dataclass
class _Entry:
    """used_at: of the monotonic clock, since that of the day jumps. token_ids: once its header has been read."""

    path: Path
    parent: str
    num_tokens: int
    num_bytes: int
    used_at: float
    token_ids: tuple[int, ...] | None = None


class DiskTier:
    """The blocks of one model in a folder, which other models may share: their names differ, as digests do."""

    def __init__(
        self,
        folder: Path,
        made_by: Mapping[str, str],
        cache: BlockAccess,
        max_bytes: int,
        min_tokens: int = MIN_TOKENS,
    ) -> None:
        """made_by: as in `BlockHeader`. max_bytes: of the whole folder. OSError when the folder cannot be made."""
        self.folder = folder
        self._made_by = made_by
        self._cache = cache
        self.max_bytes = max_bytes
        self._min_tokens = min_tokens
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[str, _Entry] = {}
        self._children: dict[str, dict[str, None]] = {}  # digests by the context that they follow
        self._saved: dict[tuple[Path, int], frozenset[str]] = {}  # digests by file and time of a saved session
        self.num_bytes = 0
        """Of all files, other models' included."""
        for digest, entry in _scan(folder).items():
            self._add(digest, entry)

    def holds(self, content: Content) -> bool:
        """See `Tier.holds`."""
        return content.digest.hex() in self._entries

    def wants(self, content: Content) -> bool:
        """Say whether content is worth a file that is not there."""
        return content.start + len(content.token_ids) >= self._min_tokens and not self.holds(content)

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
            parts = self._cache.room_for(block)
            header = read_block(entry.path, parts)
            header.require(self._made_by, content.parent.hex(), content.token_ids, entry.path)
        except (SessionError, OSError) as error:
            log.warning("%s; its %s tokens are computed again", error, len(content.token_ids))
            self._remove(content.digest.hex())
            return False
        self._cache.write_block(block, parts)
        self._touch(entry)
        return True

    def longest(self, parent: bytes, token_ids: Sequence[int]) -> tuple[Content, int] | None:
        """See `Tier.longest`."""
        best: tuple[Content, int] | None = None
        for digest in list(self._children.get(parent.hex(), ())):
            held = self._token_ids(digest)
            length = 0 if held is None else common_prefix(held, token_ids)
            if held is not None and length > (best[1] if best else 0):
                best = Content(parent, held, bytes.fromhex(digest)), length
        return best

    def keep(self, content: Content, block: int) -> None:
        """See `Tier.keep`; a disk that refuses is told to the log."""
        if self.wants(content):
            self.keep_parts(content, self._cache.read_block(block))

    def keep_parts(self, content: Content, parts: Sequence[Tensor], spare_since: float | None = None) -> bool:
        """Write a block that is wanted. spare_since: remove nothing for it that was used since then, of the monotonic
        clock; False where there is no room so, or the disk refuses."""
        if not self.wants(content):
            return True
        if not self._make_room(self._cache.block_bytes, spare_since):
            return False
        name = f"{content.digest.hex()}-{content.parent.hex()}-{len(content.token_ids)}{SUFFIX}"
        path = self.folder / name
        try:
            num_bytes = write_block(path, self._made_by, content.parent.hex(), content.token_ids, parts)
        except OSError as error:
            log.warning("a block of a conversation cannot be stored in %s: %s", self.folder, error)
            return False
        tokens = content.token_ids
        entry = _Entry(path, content.parent.hex(), len(tokens), num_bytes, time.monotonic(), tokens)
        self._add(content.digest.hex(), entry)
        self._drop_beginnings(content)
        return True

    def finds(self, content: Content) -> bool:
        """Say whether a content's file is there, which somebody else may have removed, and note that it is used now."""
        entry = self._entries.get(content.digest.hex())
        if entry is None or not entry.path.is_file():
            if entry is not None:
                self._remove(content.digest.hex())
            return False
        self._touch(entry)
        return True

    def save(self, path: Path, model: str, contents: Sequence[Content]) -> None:
        """Keep blocks that are held here as a session, in a file as `session_path` names it. OSError when the disk
        refuses."""
        token_ids = [token_id for content in contents for token_id in content.token_ids]
        digests = torch.frombuffer(bytearray().join(content.digest for content in contents), dtype=torch.uint8)
        write_block(path, with_model(self._made_by, model), "", token_ids, [digests])

    def saved(self, path: Path) -> list[int]:
        """Return the tokens of a session. SessionError where there is none, or another model or option made it."""
        try:
            header = read_header(path)
        except FileNotFoundError:
            raise SessionError(f"there is no session '{path.stem}'", hint="`qlocal sessions` lists them.") from None
        except OSError as error:
            raise SessionError(f"{path.name} cannot be read: {error}") from error
        header.require(self._made_by, "", [], path)
        return header.token_ids

    def _drop_beginnings(self, content: Content) -> None:
        """Remove blocks that are the beginning of this one: a conversation's last block as it was before it grew."""
        for digest in list(self._children[content.parent.hex()]):
            if self._entries[digest].num_tokens < len(content.token_ids):
                held = self._token_ids(digest)
                if held is not None and content.token_ids[: len(held)] == held:
                    self._remove(digest)

    def _token_ids(self, digest: str) -> tuple[int, ...] | None:
        """Return what a file holds, from its header the first time; one that cannot be read is told and removed."""
        entry = self._entries[digest]
        if entry.token_ids is None:
            try:
                header = read_header(entry.path)
                header.require(self._made_by, entry.parent, [], entry.path)
            except (SessionError, OSError) as error:
                log.warning("%s; it is removed", error)
                self._remove(digest)
                return None
            entry.token_ids = tuple(header.token_ids)
        return entry.token_ids

    def _make_room(self, num_bytes: int, spare_since: float | None) -> bool:
        saved = self._saved_digests() if self.num_bytes + num_bytes > self.max_bytes else set()
        while self.num_bytes + num_bytes > self.max_bytes:
            spare = ((digest, entry) for digest, entry in self._entries.items() if digest not in saved)
            digest, entry = min(spare, key=lambda item: item[1].used_at, default=("", None))
            if entry is None:
                return False
            if spare_since is not None and entry.used_at >= spare_since:
                return False
            self._remove(digest)
        return shutil.disk_usage(self.folder).free >= num_bytes + FREE_BYTES

    def _saved_digests(self) -> set[str]:
        """Return the blocks of all saved sessions, those of other servers and models that share the folder too."""
        found: dict[tuple[Path, int], frozenset[str]] = {}
        for path in session_files(self.folder):
            with suppress(SessionError, OSError):  # one that cannot be read keeps nothing
                key = path, path.stat().st_mtime_ns
                found[key] = self._saved.get(key) or _digests_in(path)
        self._saved = found
        return set().union(*found.values())

    def _touch(self, entry: _Entry) -> None:
        entry.used_at = time.monotonic()
        try:
            os.utime(entry.path)
        except OSError as error:
            log.info("%s keeps its time: %s", entry.path.name, error)

    def _add(self, digest: str, entry: _Entry) -> None:
        self._entries[digest] = entry
        self._children.setdefault(entry.parent, {})[digest] = None
        self.num_bytes += entry.num_bytes

    def _remove(self, digest: str) -> None:
        entry = self._entries.pop(digest)
        siblings = self._children[entry.parent]
        del siblings[digest]
        if not siblings:
            del self._children[entry.parent]
        self.num_bytes -= entry.num_bytes
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
            age = max(0.0, time.time() - status.st_mtime)  # one of tomorrow was used just now
            entries[digest] = _Entry(path, parent, num_tokens, status.st_size, time.monotonic() - age)
    return entries


def _digests_in(path: Path) -> frozenset[str]:
    """Return the digests of the blocks of a saved session."""
    room = torch.empty(read_header(path).payload_bytes, dtype=torch.uint8)
    read_block(path, [room])
    return frozenset(bytes(part.tolist()).hex() for part in torch.split(room, DIGEST_BYTES))


def _parsed(stem: str) -> tuple[str, str, int] | None:
    parts: Iterable[str] = stem.split("-")
    match list(parts):
        case [digest, parent, count] if len(digest) == len(parent) == 32 and count.isdecimal():
            return digest, parent, int(count)
    return None
