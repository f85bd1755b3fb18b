"""The GGML tensor types: numbers, block sizes, bytes. No torch; shared by formats, kernels and plan.

Source: GGUF v3, `docs/formats.md`. A row of K elements is stored as K / block_size blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class GgmlType(IntEnum):
    """Type number as it stands in a GGUF tensor info."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30


@dataclass(frozen=True)
class BlockLayout:
    """How many elements stand in one block, and how many bytes it takes."""

    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.block_bytes * 8 / self.block_size


LAYOUTS: dict[GgmlType, BlockLayout] = {
    GgmlType.F32: BlockLayout(1, 4),
    GgmlType.F16: BlockLayout(1, 2),
    GgmlType.BF16: BlockLayout(1, 2),
    GgmlType.Q4_0: BlockLayout(32, 18),
    GgmlType.Q4_1: BlockLayout(32, 20),
    GgmlType.Q5_0: BlockLayout(32, 22),
    GgmlType.Q5_1: BlockLayout(32, 24),
    GgmlType.Q8_0: BlockLayout(32, 34),
    GgmlType.Q2_K: BlockLayout(256, 84),
    GgmlType.Q3_K: BlockLayout(256, 110),
    GgmlType.Q4_K: BlockLayout(256, 144),
    GgmlType.Q5_K: BlockLayout(256, 176),
    GgmlType.Q6_K: BlockLayout(256, 210),
    GgmlType.IQ4_NL: BlockLayout(32, 18),
    GgmlType.IQ4_XS: BlockLayout(256, 136),
}

FLOAT_TYPES = frozenset({GgmlType.F32, GgmlType.F16, GgmlType.BF16})
"""Types that are read into a DenseWeight; all others into a BlockWeight."""


def row_bytes(ggml_type: GgmlType, columns: int) -> int:
    """Bytes of one row of `columns` elements; `columns` must be a multiple of the block size."""
    layout = LAYOUTS[ggml_type]
    assert columns % layout.block_size == 0, f"{columns} columns are no multiple of {ggml_type.name}'s block"
    return columns // layout.block_size * layout.block_bytes
