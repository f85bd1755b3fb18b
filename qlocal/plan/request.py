"""What a plan is asked for, before anything is decided. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from qlocal.config import FROM_CONTEXT, PREFILL_CHUNK, STORED
from qlocal.formats.base import Checkpoint
from qlocal.plan.demand import DENSE_STORAGE, Demand
from qlocal.plan.layout import UNIT_COLUMNS
from qlocal.plan.places import Place

BLOCK_SIZE = 256
SPLIT_CHOICES = ("layer", "tensor")
LOADABLE_SPLITS = SPLIT_CHOICES
"""Of all that can be planned, what the engine of this version runs."""
MIN_CONTEXT = 256
ENOUGH_CONTEXT = 8192
"""Tokens for which, where they fit on the cards and nobody says otherwise, nothing is sent to the host."""


@dataclass(frozen=True)
class Request:
    """A checkpoint and the places it may be put into.

    host: where layers or experts go that the places cannot hold; None for nowhere. limit: the longest context that the
    model was made for; max_context: what is wanted, or None for what fits. slots: sequences at once. dtype, key_type,
    value_type, head, split, block_size, prefill_chunk, guesses: as in `Plan`; offload: one of OFFLOAD_CHOICES.
    is_for_loading: propose only what can be run. draft: the model that `guesses` names, if it names one."""

    checkpoint: Checkpoint
    places: tuple[Place, ...]
    limit: int
    host: Place | None = None
    max_context: int | None = None
    slots: int = 8
    dtype: str = "bfloat16"
    key_type: str = "f16"
    value_type: str = "f16"
    head: str = STORED
    split: str = "layer"
    offload: str = "auto"
    block_size: int = BLOCK_SIZE
    prefill_chunk: int = PREFILL_CHUNK
    is_for_loading: bool = False
    guesses: str = FROM_CONTEXT
    draft: Checkpoint | None = None

    @cached_property
    def demand(self) -> Demand:
        return Demand(self.checkpoint, self.dtype, self.head, self.key_type, self.value_type, self.block_size)

    @cached_property
    def of_draft(self) -> Request | None:
        """The draft model as a request of its own: its cache is of the same types and has the same blocks."""
        if self.draft is None:
            return None
        return replace(self, checkpoint=self.draft, head=STORED, split="layer", offload="none", draft=None)

    @cached_property
    def is_native(self) -> bool:
        """Whether the CPU runs prompts through its layers in one native call: bfloat16 and quantized layers."""
        config = self.checkpoint.config
        sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
        linears = (stored for stored in self.checkpoint.tensors.values() if stored.spec.is_quantized)
        return (
            self.dtype == "bfloat16"
            and all(size % UNIT_COLUMNS == 0 for size in sizes)
            and not any(stored.storage in DENSE_STORAGE for stored in linears)
        )

    @property
    def offloads_experts(self) -> bool:
        """Whether what goes to the host are experts, not whole layers."""
        return self.offload == "experts" or (self.offload == "auto" and self.checkpoint.architecture.is_moe)

    @property
    def can_offload(self) -> bool:
        return self.host is not None and self.offload != "none" and self.split == "layer"
