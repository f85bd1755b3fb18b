"""What a rank of a tensor split holds of every tensor: heads, FFN columns, rows of the head. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlocal.models.base import ModelConfig, Role
from qlocal.tensor_split import cut_model


@dataclass(frozen=True)
class Part:
    """The sizes of one rank."""

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_rows: int

    def shape(self, role: Role, config: ModelConfig) -> tuple[int, int]:
        """Return (N, K) of this rank's piece of a matrix; what is not divided is whole."""
        hidden, queries = config.hidden_size, self.num_attention_heads * config.head_dim
        keys = self.num_key_value_heads * config.head_dim
        shapes = {
            Role.Q: (queries, hidden),
            Role.K: (keys, hidden),
            Role.V: (keys, hidden),
            Role.O: (hidden, queries),
            Role.GATE: (self.intermediate_size, hidden),
            Role.UP: (self.intermediate_size, hidden),
            Role.DOWN: (hidden, self.intermediate_size),
            Role.ROUTER: (config.num_experts, hidden),
            Role.HEAD: (self.vocab_rows, hidden),
            Role.EMBEDDING: (self.vocab_rows, hidden),
        }
        return shapes[role]


def whole(config: ModelConfig) -> Part:
    """Return the part of one rank that holds everything."""
    return Part(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size, config.vocab_size)


def parts(config: ModelConfig, room: Sequence[int], ffn_unit: int) -> list[Part]:
    """Divide a model among ranks in proportion to their `room`.

    ffn_unit: columns of the FFN that belong together, as a quantization group. PlanError where a rank gets none."""
    return [
        Part(len(share.heads), len(share.kv_heads), len(share.channels), len(share.vocab))
        for share in cut_model(config, room, ffn_unit)
    ]
