"""One rank's place in a tensor split: what it reads of every tensor, and how it reaches the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qlocal.formats.base import Checkpoint, Region
from qlocal.ggml_types import LAYOUTS
from qlocal.models.base import Role, TensorSpec
from qlocal.parallel.collectives import Collectives
from qlocal.parallel.columns import HeldColumns, in_even_groups, inputs_of, widened
from qlocal.parallel.host_exchange import HostExchange
from qlocal.tensor_split import Share
from qlocal.weights import AffineWeight


@dataclass(frozen=True)
class Seat:
    """A rank of several that compute one model. shares: of all ranks, in their order. exchange: the quick way to add up
    over cards of one machine, where there is one."""

    shares: Sequence[Share]
    collectives: Collectives
    exchange: HostExchange | None = None

    @property
    def share(self) -> Share:
        return self.shares[self.collectives.rank]

    def join_logits(self, logits: Tensor) -> Tensor:
        """Return (T, V) f32 on rank 0 from the (T, rows of the head) f32 of every rank; elsewhere its own."""
        return self.collectives.gather_columns(logits, [len(share.vocab) for share in self.shares])


def read_part(checkpoint: Checkpoint, spec: TensorSpec, role: Role, share: Share | None) -> HeldColumns:
    """Read what a rank holds of a tensor, and nothing else of it; all of it without a share.

    role: what the tensor is read for, which is the head for an embedding that is tied to it.
    """
    if share is None:
        return HeldColumns(checkpoint.read(spec.name))
    region = share.region(spec, role, checkpoint.config)
    if region.columns is None:
        return HeldColumns(checkpoint.read(spec.name, region))
    ggml_type = checkpoint.tensors[spec.name].ggml_type
    wide = region.columns if ggml_type is None else widened(region.columns, LAYOUTS[ggml_type].block_size)
    weight = checkpoint.read(spec.name, Region(columns=wide))
    if isinstance(weight, AffineWeight) and weight.g_idx is not None:
        return in_even_groups(weight)
    return HeldColumns(weight, inputs_of(region.columns, wide))
