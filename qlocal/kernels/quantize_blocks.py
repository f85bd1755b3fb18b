"""Fitting and packing GGML blocks in native code, bit for bit as the searches of `quantize.methods` do it with numpy.

It checks everything the C side takes for granted (`csrc/quantize_blocks.h`).
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels import native

BLOCK_TYPES = frozenset(
    {
        GgmlType.Q4_0,
        GgmlType.Q4_1,
        GgmlType.Q5_0,
        GgmlType.Q5_1,
        GgmlType.Q8_0,
        GgmlType.Q4_K,
        GgmlType.Q5_K,
        GgmlType.Q6_K,
    }
)


class Fit(IntEnum):
    """How hard to look for the best block; the numbers of csrc/quantize_blocks.h.

    PLAIN rounds without any search, SEARCH weighs the elements of a block by themselves, WEIGHTED by the importance of
    their columns.
    """

    PLAIN = 0
    SEARCH = 1
    WEIGHTED = 2


class QuantizeJob(ctypes.Structure):
    """`struct QuantizeJob` of csrc/quantize_blocks.h."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("importance", ctypes.c_void_p),
        ("error_weights", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("block_row_bytes", ctypes.c_int64),
        ("storage", ctypes.c_int32),
        ("block_type", ctypes.c_int32),
        ("fit", ctypes.c_int32),
    )


def quantize_blocks(
    library: native.Library,
    w_NK: Tensor,
    ggml_type: GgmlType,
    fit: Fit,
    importance_K: Tensor | None = None,
    error_weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantize the rows of a matrix on as many threads as torch uses; the result does not depend on their number.

    w_NK: (N, K) f32, f16 or bf16 on the CPU, K a multiple of the type's block. importance_K: (K,) f32 above 0, given
    exactly when `fit` is WEIGHTED. error_weights_K: (K,) f32 or None for ones.
    Returns blocks (N, row_bytes) uint8 and errors (N, 2) f64: the sums over each row of weight (w - read back)² and of
    weight w².
    """
    num_rows, columns = w_NK.shape
    layout = LAYOUTS[ggml_type]
    assert ggml_type in BLOCK_TYPES and columns % layout.block_size == 0, f"{columns} columns of {ggml_type.name}"
    assert w_NK.device.type == "cpu" and w_NK.dtype in native.FLOAT_STORAGE, "the caller has widened or moved it"
    assert (importance_K is not None) == (fit is Fit.WEIGHTED), "importance is what WEIGHTED means"
    rows = w_NK if w_NK.stride(1) == 1 else w_NK.contiguous()
    importance, error_weights = _floats(importance_K, columns), _floats(error_weights_K, columns)
    blocks = torch.empty((num_rows, columns // layout.block_size * layout.block_bytes), dtype=torch.uint8)
    errors = torch.empty((num_rows, 2), dtype=torch.float64)
    job = QuantizeJob(
        rows=rows.data_ptr(),
        importance=None if importance is None else importance.data_ptr(),
        error_weights=None if error_weights is None else error_weights.data_ptr(),
        blocks=blocks.data_ptr(),
        errors=errors.data_ptr(),
        num_rows=num_rows,
        columns=columns,
        row_bytes=rows.stride(0) * rows.element_size(),
        block_row_bytes=blocks.shape[1],
        storage=native.FLOAT_STORAGE[w_NK.dtype],
        block_type=int(ggml_type),
        fit=int(fit),
    )
    native.set_threads(torch.get_num_threads())
    library.functions.qlocal_quantize_blocks(library.isa, ctypes.byref(job))
    return blocks, errors


def _floats(values_K: Tensor | None, columns: int) -> Tensor | None:
    if values_K is None:
        return None
    assert values_K.shape == (columns,), f"{tuple(values_K.shape)} values for {columns} columns"
    return values_K.to(torch.float32).contiguous()
