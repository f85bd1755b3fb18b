"""Refuses what does not fit before an engine is started for it: from headers alone, in milliseconds."""

from __future__ import annotations

from pathlib import Path

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.plan import plan_load
from qlocal.protocol import Load


def check_plan(load: Load) -> None:
    """Raise what the rank would say of a checkpoint that cannot be read or does not fit."""
    plan_load(open_checkpoint(Path(load.path)), load)
