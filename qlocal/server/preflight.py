"""Refuses what does not fit before an engine is started for it: from headers alone, in milliseconds."""

from __future__ import annotations

from pathlib import Path

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.plan import plan_load
from qlocal.protocol import Load


def check_plan(load: Load) -> None:
    """Raise what the rank would say of a checkpoint that cannot be read or does not fit."""
    checkpoint = open_checkpoint(Path(load.path))
    if load.nodes is None:  # what other nodes have, rank 0 alone is told
        plan_load(checkpoint, load)
