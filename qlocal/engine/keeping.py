"""What becomes of blocks that leave the cache, or are there when the server ends: host memory first, then disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from qlocal.cache.block_manager import BlockManager
from qlocal.cache.block_pool import Content
from qlocal.cache.disk_tier import DiskTier
from qlocal.cache.host_tier import HostTier
from qlocal.cache.tiers import BlockAccess, Chain, Tier
from qlocal.formats.base import Checkpoint
from qlocal.formats.identity import weights_identity
from qlocal.models.long_context import stretched
from qlocal.plan import Plan
from qlocal.protocol import Load

log = logging.getLogger(__name__)


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
            self.has_unkept, self._since = self._disk is not None, time.time()

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
