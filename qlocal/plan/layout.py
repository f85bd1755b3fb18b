"""How many bytes a weight takes once it is ready to compute: on the CPU in strips, on a card in chunks. No torch.

The layouts themselves are the kernels' (`kernels/csrc/strip_layout.h`, `kernels/triton/layout.py`); tests hold the
sizes here against theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from qlocal.formats.base import StoredTensor
from qlocal.ggml_types import FLOAT_TYPES, LAYOUTS, GgmlType, row_bytes

STRIP_ROWS, UNIT_COLUMNS = 16, 32
LARGE_PAGE = 2 << 20
CARD_GROUP_SIZES = (32, 64, 128)
_INDEX_BYTES = 8
"""Of a row map or a column order, int64."""


@dataclass(frozen=True)
class Held:
    """Bytes of something where it computes. allocated: memory of the process, or of the card; mapped: pages of the file
    that every token reads, which the system can drop and read again."""

    allocated: int = 0
    mapped: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.allocated + other.allocated, self.mapped + other.mapped)

    @property
    def total(self) -> int:
        return self.allocated + self.mapped


@dataclass(frozen=True)
class Matrix:
    """A weight (N, K) as it is stored. ggml_type: None for AWQ and GPTQ, which have a group_size.

    has_order: its columns may stand in another order (act-order). has_row_map: its rows do."""

    rows: int
    columns: int
    ggml_type: GgmlType | None
    group_size: int = 0
    has_order: bool = False
    has_row_map: bool = False

    @classmethod
    def of(cls, stored: StoredTensor, shape: tuple[int, ...] | None = None) -> Matrix:
        """Return a stored matrix, or as much of it as `shape` says: a group or block that is parted is held whole."""
        rows, columns = stored.shape if shape is None else shape
        if stored.storage in ("awq", "gptq"):
            assert stored.group_size is not None, "a reader tells the group size of codes"
            held = _whole_units(columns, stored.group_size)
            return cls(rows, held, None, stored.group_size, has_order=stored.has_g_idx)
        ggml_type = GgmlType[stored.storage.upper()]
        held = _whole_units(columns, LAYOUTS[ggml_type].block_size)
        is_permuted = stored.ggml_type is not None and stored.spec.permuted_heads > 0
        return cls(rows, held, ggml_type, has_row_map=is_permuted)

    @property
    def is_dense(self) -> bool:
        return self.ggml_type in FLOAT_TYPES

    @property
    def neutral_bytes(self) -> int:
        """Bytes as `weights.py` holds it: rows as they lie in the file, or codes, scales and zero points."""
        if self.ggml_type is not None:
            return self.rows * row_bytes(self.ggml_type, self.columns)
        return self.rows * (self.columns // 2 + 3 * (self.columns // self.group_size))


def _whole_units(columns: int, unit: int) -> int:
    return -(-columns // unit) * unit


def on_cpu(parts: Sequence[Matrix], *, is_exact: bool) -> Held:
    """Return what a linear of these parts, which have one input, takes on the CPU.

    is_exact: products are made in float32 from the layout on disk, not from strips."""
    return sum((_run_on_cpu(run, is_exact) for run in _joined(parts)), Held())


def on_card(parts: Sequence[Matrix]) -> Held:
    """Return what a linear of these parts takes on an NVIDIA card."""
    return Held(sum(_run_on_card(run) for run in _joined(parts)))


def in_pages(num_bytes: int) -> int:
    """Return what memory of the host takes: from one large page on, whole ones (`kernels/large_pages.py`)."""
    return num_bytes if num_bytes < LARGE_PAGE else -(-num_bytes // LARGE_PAGE) * LARGE_PAGE


def _joined(parts: Sequence[Matrix]) -> list[list[Matrix]]:
    """Return the runs of neighbours that one kernel call computes (`kernels/joining.py`)."""
    return [list(run) for _, run in groupby(parts, key=lambda m: replace(m, rows=0, has_row_map=False))]


def _run_on_cpu(run: list[Matrix], is_exact: bool) -> Held:
    first, rows = run[0], sum(part.rows for part in run)
    if first.ggml_type is None and first.group_size % UNIT_COLUMNS:
        return Held(sum(part.neutral_bytes for part in run))
    if not first.is_dense and not is_exact:
        return Held(in_pages(_strip_bytes(first, rows)) + _order_bytes(first))
    if first.ggml_type is None:
        return Held(rows * (first.columns // first.group_size) * (4 + first.group_size // 2) + _order_bytes(first))
    maps, stored = _map_bytes(run), sum(part.neutral_bytes for part in run)
    return Held(maps, stored) if len(run) == 1 else Held(maps + stored)


def _order_bytes(matrix: Matrix) -> int:
    return _INDEX_BYTES * matrix.columns if matrix.has_order else 0


def _map_bytes(run: list[Matrix]) -> int:
    return _INDEX_BYTES * sum(part.rows for part in run) if any(part.has_row_map for part in run) else 0


# --- Strips: (units of 32 columns in a record, bytes of its scales, bytes of the codes of a unit)

_STRIPS = {
    GgmlType.Q4_0: (2, 64, 256),
    GgmlType.IQ4_NL: (2, 64, 256),
    GgmlType.Q5_0: (2, 64, 320),
    GgmlType.Q8_0: (2, 64, 512),
    GgmlType.Q4_1: (1, 64, 256),
    GgmlType.Q5_1: (1, 64, 320),
    GgmlType.Q4_K: (8, 256, 256),
    GgmlType.Q5_K: (8, 256, 320),
    GgmlType.Q6_K: (8, 320, 384),
    GgmlType.Q3_K: (8, 320, 192),
    GgmlType.Q2_K: (8, 320, 128),
    GgmlType.IQ4_XS: (8, 192, 256),
}


def _strip_bytes(matrix: Matrix, rows: int) -> int:
    if matrix.ggml_type is None:
        units, scales, codes = matrix.group_size // UNIT_COLUMNS, 64, 256
    else:
        units, scales, codes = _STRIPS[matrix.ggml_type]
    records = -(-(matrix.columns // UNIT_COLUMNS) // units)
    return -(-rows // STRIP_ROWS) * records * (scales + units * codes)


# --- Chunks


@dataclass(frozen=True)
class _Chunks:
    """columns: of a chunk; code_bytes and field_bytes: of a row and chunk; scale_columns: that share 16 bits."""

    columns: int
    code_bytes: int
    scale_columns: int
    field_bytes: int = 0

    def num_bytes(self, rows: int, columns: int) -> int:
        chunks = -(-columns // self.columns)
        scales = -(-chunks * self.columns // self.scale_columns)
        return rows * (chunks * (self.code_bytes + self.field_bytes) + 2 * scales)


_CHUNKS = {
    GgmlType.Q4_0: _Chunks(128, 64, 32),
    GgmlType.Q8_0: _Chunks(64, 64, 32),
    GgmlType.Q4_K: _Chunks(128, 64, 128, 6),
    GgmlType.Q5_K: _Chunks(128, 80, 128, 6),
    GgmlType.Q6_K: _Chunks(128, 96, 256, 8),
}


def _run_on_card(run: list[Matrix]) -> int:
    first, rows = run[0], sum(part.rows for part in run)
    chunks = _chunks_of(first)
    if chunks is None:  # the reference computes with it as it is stored
        return _map_bytes(run) + sum(part.neutral_bytes for part in run)
    return chunks.num_bytes(rows, first.columns) + _order_bytes(first)


def _chunks_of(matrix: Matrix) -> _Chunks | None:
    if matrix.ggml_type is not None:
        return _CHUNKS.get(matrix.ggml_type)
    if matrix.group_size not in CARD_GROUP_SIZES:
        return None
    return _Chunks(128, 64, matrix.group_size, max(1, 64 // matrix.group_size))


def shown_bytes(num_bytes: int) -> str:
    """Return a size for people, in GiB or MiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
