"""Rounding some columns with error feedback in native code, into any group that has a fit there.

It checks everything the C side takes for granted (`csrc/feedback_blocks.h`).
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels import native
from qlocal.kernels.quantize_blocks import BLOCK_TYPES, Fit, QuantizeJob

MAX_COLUMNS = 256
"""Columns that one call solves at most."""
AFFINE_HEADER = 4
"""Bytes before the codes in the record of an affine group: scale (f16), zero point (uint8), one unused."""


class AffineGroup(IntEnum):
    """4-bit groups of AWQ and GPTQ; the numbers of csrc/feedback_blocks.h. A byte a code follows the header."""

    SYMMETRIC_32 = 1000
    SYMMETRIC_64 = 1001
    SYMMETRIC_128 = 1002
    ASYMMETRIC_32 = 1003
    ASYMMETRIC_64 = 1004
    ASYMMETRIC_128 = 1005


def affine_group(group_size: int, symmetric: bool) -> AffineGroup:
    """Return the type of a group of 32, 64 or 128 columns."""
    return AffineGroup[f"{'SYMMETRIC' if symmetric else 'ASYMMETRIC'}_{group_size}"]


class _Job(ctypes.Structure):
    """`struct FeedbackJob` of csrc/feedback_blocks.h."""

    _fields_ = (
        ("matrix", QuantizeJob),
        ("order", ctypes.c_void_p),
        ("spread", ctypes.c_void_p),
        ("gram", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("rounds", ctypes.c_int32),
        ("min_zero", ctypes.c_int32),
    )


def feedback_blocks(
    library: native.Library,
    group_type: AffineGroup | GgmlType,
    targets_NB: Tensor,
    weights_B: Tensor,
    places_B: Tensor,
    spread_BB: Tensor,
    gram_BB: Tensor,
    *,
    rounds: int,
    min_zero: int = 0,
) -> tuple[Tensor, Tensor, float]:
    """Solve B columns, in the order of solving, whole groups one after another; everything on the CPU.

    targets_NB: (N, B) f32. places_B: (B,) where each column stands as the file has it, group * columns + place in the
    group. weights_B: (B,) f32 above 0, as the file has them: what fits weigh columns by. spread_BB, gram_BB: (B, B)
    f32, R^-1 and R R^T of the upper factor R of these columns. rounds: passes that move single codes afterwards.
    Returns records (N, groups, bytes) uint8, what they are read back as (N, B) f32, and the loss ||(T - Q) R||².
    """
    columns, record_bytes = group_layout(group_type)
    num_rows, width = targets_NB.shape
    groups = width // columns
    assert 0 < width <= MAX_COLUMNS and width % columns == 0, f"{width} columns are no whole groups of {columns}"
    assert spread_BB.shape == gram_BB.shape == (width, width), "both matrices are those of the columns"
    targets, weights, spread, gram = (t.float().contiguous() for t in (targets_NB, weights_B, spread_BB, gram_BB))
    places = places_B.to(torch.int32).contiguous()
    assert bool((places.view(groups, columns) // columns == torch.arange(groups).unsqueeze(1)).all()), (
        "columns come group after group"
    )
    records = torch.empty((num_rows, groups, record_bytes), dtype=torch.uint8)
    values, errors = torch.empty((num_rows, width)), torch.empty((num_rows, 2), dtype=torch.float64)
    matrix = QuantizeJob(
        rows=targets.data_ptr(),
        importance=weights.data_ptr(),
        blocks=records.data_ptr(),
        errors=errors.data_ptr(),
        num_rows=num_rows,
        columns=width,
        row_bytes=4 * width,
        block_row_bytes=groups * record_bytes,
        storage=int(GgmlType.F32),
        block_type=int(group_type),
        fit=int(Fit.WEIGHTED),
    )
    job = _Job(
        matrix=matrix,
        order=places.data_ptr(),
        spread=spread.data_ptr(),
        gram=gram.data_ptr(),
        values=values.data_ptr(),
        rounds=rounds,
        min_zero=min_zero,
    )
    native.set_threads(torch.get_num_threads())
    library.functions.qlocal_feedback_blocks(library.isa, ctypes.byref(job))
    return records, values, float(errors[:, 0].sum())


def group_layout(group_type: AffineGroup | GgmlType) -> tuple[int, int]:
    """Return the columns and the bytes of a group's record."""
    if isinstance(group_type, AffineGroup):
        columns = int(group_type.name.rpartition("_")[2])
        return columns, AFFINE_HEADER + columns
    assert group_type in BLOCK_TYPES, f"{group_type.name} is not made here"
    return LAYOUTS[group_type].block_size, LAYOUTS[group_type].block_bytes
