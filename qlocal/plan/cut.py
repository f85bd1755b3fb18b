"""What a rank of a tensor split holds of every tensor: heads, FFN columns, rows of the head. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from qlocal.errors import PlanError
from qlocal.models.base import ModelConfig, Role

LEAST_UNIT = 32
"""Rows or columns that are never parted: words of codes, strips of rows and small groups are whole in it."""


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
    kv_heads = divided(config.num_key_value_heads, 1, room)
    columns = divided(config.intermediate_size, math.lcm(LEAST_UNIT, ffn_unit), room)
    if 0 in kv_heads or 0 in columns:
        raise PlanError(
            f"{config.num_key_value_heads} heads of keys and values and {config.intermediate_size} FFN columns in "
            f"groups of {ffn_unit} cannot be divided among {len(room)} devices",
            hint="Take --split layer, or fewer devices.",
        )
    queries = config.num_attention_heads // config.num_key_value_heads
    rows = divided(config.vocab_size, LEAST_UNIT, room)
    return [Part(kv * queries, kv, f, v) for kv, f, v in zip(kv_heads, columns, rows, strict=True)]


def divided(count: int, unit: int, weights: Sequence[int]) -> list[int]:
    """Cut `count` on boundaries of `unit`, in proportion to weights; the last takes what fills no unit."""
    units, reached, cuts = -(-count // unit), 0, [0]
    for weight in weights:
        reached += weight
        # Halves go up, so that of two equal ranks the first has the larger piece.
        cuts.append(min(count, (2 * units * reached + sum(weights)) // (2 * sum(weights)) * unit))
    return [stop - start for start, stop in pairwise(cuts)]
