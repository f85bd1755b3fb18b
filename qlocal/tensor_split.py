"""What every rank of a tensor split holds of a model: heads, FFN channels, rows of the output head. No torch.

q, k, v, gate and up are cut by rows, o and down by columns, so that a layer needs two sums over all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlocal.devices import local_name
from qlocal.errors import PlanError
from qlocal.formats.base import WHOLE, Checkpoint, Region, StoredTensor
from qlocal.ggml_types import LAYOUTS
from qlocal.models.base import ModelConfig, Role, TensorSpec
from qlocal.parallel.cuts import divide, divide_heads

LEAST_UNIT = 32
"""Rows or channels that are never parted: words of codes, strips of rows and small groups are whole in it."""
_BY_COLUMNS = (Role.O, Role.DOWN)


@dataclass(frozen=True)
class Share:
    """One rank's part of every layer, and of the head's rows."""

    rank: int
    heads: range
    kv_heads: range
    channels: range
    vocab: range

    def config(self, whole: ModelConfig) -> ModelConfig:
        """Return the geometry of the layers that this rank computes; the vocabulary stays whole."""
        return replace(
            whole,
            num_attention_heads=len(self.heads),
            num_key_value_heads=len(self.kv_heads),
            intermediate_size=len(self.channels),
        )

    def region(self, spec: TensorSpec, role: Role, whole: ModelConfig) -> Region:
        """Return what of a tensor this rank holds. role: the tensor's, or HEAD for an embedding that is the head."""
        heads, kv_heads = (_times(part, whole.head_dim) for part in (self.heads, self.kv_heads))
        rows = {
            Role.Q: heads,
            Role.K: kv_heads,
            Role.V: kv_heads,
            Role.GATE: self.channels,
            Role.UP: self.channels,
            Role.HEAD: self.vocab,
        }
        if role in rows:
            return Region(rows=rows[role])
        if role in _BY_COLUMNS and not spec.is_bias:
            return Region(columns=heads if role is Role.O else self.channels)
        return WHOLE

    def adds_bias(self, role: Role) -> bool:
        """Whether this rank adds the bias of a linear: one that is cut by columns adds it once."""
        return self.rank == 0 or role not in _BY_COLUMNS


def shares(checkpoint: Checkpoint, weights: Sequence[int]) -> tuple[Share, ...]:
    """Cut a checkpoint among ranks in proportion to `weights`; PlanError where a rank would get nothing."""
    return cut_model(checkpoint.config, weights, channel_unit(checkpoint))


def cut_model(config: ModelConfig, weights: Sequence[int], unit: int) -> tuple[Share, ...]:
    """Do what `shares` does for a geometry. unit: FFN channels that belong together."""
    heads, kv_heads = divide_heads(config.num_attention_heads, config.num_key_value_heads, weights)
    channels = divide(config.intermediate_size, math.lcm(LEAST_UNIT, unit), weights, "FFN channels")
    vocab = divide(config.vocab_size, LEAST_UNIT, weights, "rows of the head")
    parts = zip(heads, kv_heads, channels, vocab, strict=True)
    return tuple(Share(rank, *part) for rank, part in enumerate(parts))


def check_devices(devices: Sequence[str]) -> None:
    """Raise PlanError where a tensor split cannot be carried: partial sums travel between devices of one kind."""
    kinds = {local_name(device).partition(":")[0] for device in devices}
    if len(kinds) > 1:
        raise PlanError(
            f"a tensor split needs devices of one kind, not {' and '.join(sorted(kinds))}", hint="Take --split layer."
        )


def channel_unit(checkpoint: Checkpoint) -> int:
    """Return the FFN channels that belong together: whole groups or blocks of every down projection."""
    downs = [stored for stored in checkpoint.tensors.values() if stored.spec.role is Role.DOWN]
    return math.lcm(*{_column_unit(stored) for stored in downs})


def _column_unit(stored: StoredTensor) -> int:
    if stored.ggml_type is not None:
        return LAYOUTS[stored.ggml_type].block_size
    size = stored.group_size
    return 1 if size is None or size == stored.shape[1] else size  # one scale a row goes to every rank


def _times(part: range, count: int) -> range:
    return range(part.start * count, part.stop * count)
