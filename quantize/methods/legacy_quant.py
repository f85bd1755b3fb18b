"""The 32-element GGML types: Q4_0, Q4_1, Q5_0, Q5_1 with and without importance, and Q8_0.

Three ways: plain rounding, which is all that llama.cpp does without importance; the search for the smallest squared
error; and the search weighted by v sqrt(σ² + x²), v the importance of a column and σ² over the whole row. Fields are
arrays over B blocks; `formats.ggml_blocks` makes bytes of them.
"""

from __future__ import annotations

import numpy as np

from qlocal.ggml_types import GgmlType
from qlocal.kernels.quantize_blocks import Fit
from quantize.methods.block_search import (
    Floats,
    inverse_step,
    largest,
    minmax_search,
    signed_extreme,
    smallest,
    symmetric_search,
)

BLOCK = 32
NUM_LEVELS = {GgmlType.Q4_0: 16, GgmlType.Q4_1: 16, GgmlType.Q5_0: 32, GgmlType.Q5_1: 32}
WITH_MINIMUM = frozenset({GgmlType.Q4_1, GgmlType.Q5_1})

Fields = dict[str, np.ndarray]


def quantize_rows(x_NK: Floats, ggml_type: GgmlType, importance_K: Floats | None, fit: Fit) -> Fields:
    """Return the fields of all blocks in order. x_NK: (N, K) f32, K a multiple of 32; importance_K: (K,) f32 where
    `fit` is WEIGHTED. Q8_0 is always rounded.

    d (and m): (B,) f16; q: (B, 32) uint8, or int8 for Q8_0.
    """
    x_nB = np.ascontiguousarray(x_NK.reshape(-1, BLOCK).T)
    if ggml_type is GgmlType.Q8_0:
        return _round_q8(x_nB)
    if fit is Fit.PLAIN:
        return _round_minimum(x_nB, ggml_type) if ggml_type in WITH_MINIMUM else _round_symmetric(x_nB, ggml_type)
    weight_nB = np.ones_like(x_nB) if importance_K is None else _weights(x_NK, importance_K)
    half = NUM_LEVELS[ggml_type] // 2
    if ggml_type in WITH_MINIMUM:
        scale, minimum, codes = minmax_search(x_nB, weight_nB, 2 * half - 1, -0.9, 0.05, 36)
        return {"d": scale.astype(np.float16), "m": (-minimum).astype(np.float16), "q": _codes(codes)}
    scale, codes = symmetric_search(x_nB, weight_nB, half)
    return {"d": scale.astype(np.float16), "q": _codes(codes + half)}


def _weights(x_NK: Floats, importance_K: Floats) -> Floats:
    """Return v sqrt(σ² + x²) element-major: (32, B)."""
    squares = x_NK * x_NK
    # accumulate sums first to last in float32, which `sum` does not
    sigma2_N = np.add.accumulate(squares, axis=1)[:, -1] / np.float32(x_NK.shape[1])
    weights = importance_K * np.sqrt(sigma2_N[:, None] + squares)
    return np.ascontiguousarray(weights.reshape(-1, BLOCK).T)


def _round_symmetric(x_nB: Floats, ggml_type: GgmlType) -> Fields:
    """Round with d = extreme / -8 (-16); the inverse is taken before d becomes f16."""
    half = NUM_LEVELS[ggml_type] // 2
    d = signed_extreme(x_nB) / np.float32(-half)
    codes = np.minimum(np.trunc(x_nB * inverse_step(d) + np.float32(half + 0.5)), 2 * half - 1)
    return {"d": d.astype(np.float16), "q": _codes(codes)}


def _round_minimum(x_nB: Floats, ggml_type: GgmlType) -> Fields:
    nmax = NUM_LEVELS[ggml_type] - 1
    low = smallest(x_nB)
    d = (largest(x_nB) - low) / np.float32(nmax)
    codes = np.minimum(np.trunc((x_nB - low) * inverse_step(d) + np.float32(0.5)), nmax)
    return {"d": d.astype(np.float16), "m": low.astype(np.float16), "q": _codes(codes)}


def _round_q8(x_nB: Floats) -> Fields:
    d = np.abs(x_nB).max(axis=0) / np.float32(127)
    scaled = x_nB * inverse_step(d)
    away = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))  # half away from zero
    return {"d": d.astype(np.float16), "q": np.ascontiguousarray(away.T).astype(np.int8)}


def _codes(codes_nB: Floats) -> np.ndarray:
    return np.ascontiguousarray(codes_nB.T).astype(np.uint8)
