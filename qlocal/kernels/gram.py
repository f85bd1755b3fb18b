"""Gram matrices of bf16 inputs, summed in native code with AMX.

It checks everything the C side takes for granted (`csrc/gram.h`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.kernels import native


def can_add_gram() -> bool:
    """Whether this process has what `add_gram` needs: the library, and AMX."""
    library = native.load()
    return isinstance(library, native.Library) and library.isa >= native.Isa.AMX


def add_gram(inputs_TK: Tensor, gram_KK: Tensor) -> None:
    """Add sum over tokens of x_i x_j to gram[i, j] for j >= i; below the diagonal some elements become scratch.

    inputs_TK: (T, K) bf16; gram_KK: (K, K) f32; both contiguous, on the CPU. Products are exact, sums float32, and the
    same for every number of threads. `can_add_gram` holds. Raises MemoryError.
    """
    library = native.load()
    assert can_add_gram() and isinstance(library, native.Library), "the caller looks whether this can be"
    tokens, columns = inputs_TK.shape
    assert inputs_TK.dtype == torch.bfloat16 and gram_KK.dtype == torch.float32, "bf16 inputs, float32 sums"
    assert gram_KK.shape == (columns, columns), f"a matrix {tuple(gram_KK.shape)} for {columns} columns"
    assert inputs_TK.is_contiguous() and gram_KK.is_contiguous(), "both are contiguous"
    assert inputs_TK.device.type == gram_KK.device.type == "cpu", "both are on the CPU"
    native.set_threads(torch.get_num_threads())
    if not library.functions.qlocal_add_gram(inputs_TK.data_ptr(), tokens, columns, gram_KK.data_ptr()):
        raise MemoryError(f"no {2048 * columns:,} bytes to sum a Gram matrix of {columns} columns")
