"""What becomes of blocks that leave the cache, or are there when the server ends: host memory first, then disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from qlocal.cache.block_manager import BlockManager
from qlocal.cache.block_pool import Content
from qlocal.cache.disk_tier import DiskTier
from qlocal.cache.host_tier import HostTier
from qlocal.cache.saved_session import session_path
from qlocal.cache.tiers import BlockAccess, Chain, Tier
from qlocal.errors import SessionError
from qlocal.formats.base import Checkpoint
from qlocal.formats.identity import weights_identity
from qlocal.models.long_context import stretched
from qlocal.plan import Plan
from qlocal.plan.layout import shown_bytes
from qlocal.protocol import Load

log = logging.getLogger(__name__)
SAVE_S = 0.5
"""For which a session is written at once: others wait meanwhile."""


def made_by(checkpoint: Checkpoint, plan: Plan, *, is_kept: bool) -> dict[str, str]:
    """Return by name what keys and values depend on. is_kept: they outlive the process, so the weights are told too."""
    config = stretched(checkpoint.config, plan.yarn_factor)
    return {
        "weights": weights_identity(checkpoint.files) if is_kept else "",
        "geometry": repr(config),
        "rotary scaling": repr(config.rope_scaling),
        "keys and values": f"{plan.key_type},{plan.value_type}",
        "block size": str(plan.block_size),
        "products": plan.dtype,
    }


class Keeper:
    """The tiers beside one cache, and when they are written."""

    def __init__(self, cache: BlockAccess, load: Load, origin: Mapping[str, str]) -> None:
        """origin: as `made_by` returns it. A folder that cannot be used is told to the log, and nothing kept there."""
        self._cache = cache
        self._disk = _disk_tier(cache, load, origin)
        tiers: list[Tier] = [] if self._disk is None else [self._disk]
        if load.host_cache_bytes:
            tiers.insert(0, HostTier(cache, load.host_cache_bytes, self._give_up))
        self.tier = Chain(tiers) if tiers else None
        self.has_unkept = False
        """Whether something may have come that is not on disk."""
        self._since = 0.0

    def note_work(self) -> None:
        """Note that the cache has new content."""
        if not self.has_unkept:
            self.has_unkept, self._since = self._disk is not None, time.monotonic()

    def keep_next(self, blocks: BlockManager) -> None:
        """Write one block, while nobody waits; `has_unkept` tells whether there are more."""
        assert self._disk is not None, "without a disk nothing is unkept"
        for block, content in blocks.remembered():
            if self._disk.wants(content):
                parts = self._cache.read_block(block)
                self.has_unkept = self._disk.keep_parts(content, parts, spare_since=self._since)
                return
        self.has_unkept = False

    def keep_all(self, blocks: BlockManager, within_s: float) -> None:
        """Write what is not there yet, for as long as this may take."""
        deadline = time.monotonic() + within_s
        while self.has_unkept and time.monotonic() < deadline:
            self.keep_next(blocks)

    def save(self, blocks: BlockManager, name: str, model: str, token_ids: Sequence[int]) -> tuple[int, int]:
        """Keep the whole blocks of a prompt under a name; return how many tokens are on disk now, and of how many.

        Ends when all of them are, or after SAVE_S: then it is to be called again. SessionError when they cannot be.
        """
        disk = self._needed_disk()
        path, contents = session_path(disk.folder, name), blocks.full_contents(token_ids)
        total = sum(len(content.token_ids) for content in contents)
        if not contents:
            raise SessionError(f"a prompt of {len(token_ids)} tokens is too short to be saved: it has no whole block")
        if len(contents) * self._cache.block_bytes > disk.max_bytes:
            needed, most = shown_bytes(len(contents) * self._cache.block_bytes), shown_bytes(disk.max_bytes)
            raise SessionError(f"'{name}' takes {needed}, and conversations may take {most}", hint="Raise --sessions.")
        begun = time.monotonic()
        for content in contents:
            if disk.finds(content):
                continue
            if (block := blocks.find(content)) is None:
                raise SessionError(f"'{name}' cannot be saved: others took the place of its tokens", hint="Try again.")
            if not disk.keep_parts(content, self._cache.read_block(block), spare_since=begun):
                raise SessionError(f"'{name}' cannot be saved: the disk, or other saved sessions, leave no room")
            if time.monotonic() > begun + SAVE_S and content is not contents[-1]:
                return content.start + len(content.token_ids), total
        try:
            disk.save(path, model, contents)
        except OSError as error:
            raise SessionError(f"'{name}' cannot be saved: {error}") from error
        return total, total

    def saved(self, blocks: BlockManager, name: str) -> list[int]:
        """Return the tokens of a saved session, all of which are on disk or in the cache. SessionError else."""
        disk = self._needed_disk()
        token_ids = disk.saved(session_path(disk.folder, name))
        contents = blocks.full_contents(token_ids)
        missing = sum(blocks.find(content) is None and not disk.finds(content) for content in contents)
        if missing:
            raise SessionError(f"{missing} of the {len(contents)} blocks of '{name}' are missing in {disk.folder}")
        return token_ids

    def _needed_disk(self) -> DiskTier:
        if self._disk is None:
            raise SessionError("no conversations are kept on disk", hint="Start the server with --sessions SIZE.")
        return self._disk

    def _give_up(self, content: Content, parts: list[Tensor]) -> None:
        """Take from host memory what has no room there any more."""
        if self._disk is not None:
            self._disk.keep_parts(content, parts)


def _disk_tier(cache: BlockAccess, load: Load, origin: Mapping[str, str]) -> DiskTier | None:
    if load.sessions_folder is None or not load.sessions_bytes:
        return None
    try:
        folder = Path(load.sessions_folder)
        return DiskTier(folder, origin, cache, load.sessions_bytes)
    except OSError as error:
        log.warning("conversations are not kept in %s: %s", load.sessions_folder, error)
        return None
