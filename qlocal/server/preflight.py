"""Refuses what does not fit before an engine is started for it: from headers alone, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.plan import plan_load, words
from qlocal.protocol import Load


def check_plan(load: Load) -> dict[str, Any] | None:
    """Return the plan that the rank will make, as Plan.to_json(); raise what it would say of a checkpoint that cannot
    be read or does not fit. None with several nodes: what the others have, rank 0 alone is told."""
    checkpoint = open_checkpoint(Path(load.path))
    return plan_load(checkpoint, load).to_json() if load.nodes is None else None


def shown_plan(load: Load, free: Mapping[str, int]) -> dict[str, Any]:
    """Return a plan with its table and notes in lines. free: bytes of devices that are not what the driver says."""
    plan = plan_load(open_checkpoint(Path(load.path)), load, free=free)
    return {"plan": plan.to_json(), "table": words.table(plan), "notes": words.notes(plan)}
