"""Makes who guesses as a plan says: a draft model is loaded beside the large one, from its own checkpoint."""

from __future__ import annotations

from pathlib import Path

from qlocal.config import NO_DRAFT
from qlocal.engine.model_runner import ModelRunner
from qlocal.engine.speculation.draft_model import DraftModel
from qlocal.engine.speculation.speculator import Speculator
from qlocal.formats.base import Checkpoint
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.layers.kv_conditioning import storage_for
from qlocal.layers.loader import load_model
from qlocal.models.long_context import context_limit, stretched
from qlocal.plan import Plan


def open_speculator(plan: Plan, kernels: str) -> Speculator | None:
    """Return who guesses, or None where nobody shall. Raises a QLocalError for a draft model that cannot be read."""
    if plan.guesses == NO_DRAFT:
        return None
    if plan.draft is None:
        return Speculator()
    return Speculator(draft_model(open_checkpoint(Path(plan.draft.path)), plan, kernels))


def draft_model(checkpoint: Checkpoint, plan: Plan, kernels: str = "auto") -> DraftModel:
    """Load the draft model to where `plan` puts it."""
    own = plan.for_draft()
    config = stretched(checkpoint.config, own.yarn_factor)
    decoder = load_model(checkpoint, own, kernels)
    runner = ModelRunner(decoder, storage_for(decoder, own), own.block_size)
    return DraftModel(
        runner, own.num_blocks, own.block_size, config.vocab_size, context_limit(config), own.prefill_chunk
    )
