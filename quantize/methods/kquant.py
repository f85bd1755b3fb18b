"""The 256-element GGML types Q4_K, Q5_K and Q6_K: sub-blocks are fitted, then their scales are quantized in turn.

Three ways: plain rounding (for comparison), the search without importance, and the search with it. The two searches
are llama.cpp's, down to the order of sums (`docs/formats.md`); fields are arrays over S super-blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qlocal.ggml_types import GgmlType
from qlocal.kernels.quantize_blocks import Fit
from quantize.methods.block_search import (
    NO_STEP,
    TINY,
    Floats,
    largest,
    minmax_search,
    ordered_sum,
    positive_search,
    signed_extreme,
    smallest,
    symmetric_search,
)
from quantize.methods.legacy_quant import Fields

SUPER = 256
MAX_SCALE_CODE = 63


@dataclass(frozen=True)
class _Grid:
    """Codes 0..nmax of a sub-block with a minimum, and the candidates tried without importance."""

    nmax: int
    start: float
    step: float
    count: int


_GRIDS = {GgmlType.Q4_K: _Grid(15, -1.0, 0.1, 20), GgmlType.Q5_K: _Grid(31, -0.5, 0.1, 15)}


def quantize_rows(x_NK: Floats, ggml_type: GgmlType, importance_K: Floats | None, fit: Fit) -> Fields:
    """Return the fields of all super-blocks in order. x_NK: (N, K) f32, K a multiple of 256.

    Q4_K, Q5_K: d, dmin (S,) f16; scales, mins (S, 8) uint8; q (S, 256) uint8.
    Q6_K: d (S,) f16; scales (S, 16) int8; q (S, 256) uint8, 0..63.
    """
    importance = None
    if importance_K is not None:
        importance = np.broadcast_to(importance_K, x_NK.shape).reshape(-1, SUPER)
    blocks = x_NK.reshape(-1, SUPER)
    if ggml_type is GgmlType.Q6_K:
        return _quantize_q6(blocks, importance, fit)
    return _quantize_with_minimum(blocks, importance, fit, _GRIDS[ggml_type])


def _quantize_with_minimum(x_SE: Floats, importance_SE: Floats | None, fit: Fit, grid: _Grid) -> Fields:
    x_nB = _element_major(x_SE, 32)
    if fit is Fit.PLAIN:
        high, low = largest(x_nB), smallest(x_nB)
        low = np.where(low > 0, np.float32(0), low)
        scale, minimum = np.maximum(high - low, np.float32(0)) / np.float32(grid.nmax), -low
        codes = np.zeros_like(x_nB)
        (d, scales), (dmin, mins) = _largest(scale), _largest(minimum)
    elif importance_SE is None:
        mean_square = ordered_sum(x_nB * x_nB) / np.float32(32)
        weight_nB = np.sqrt(mean_square) + np.abs(x_nB)
        scale, minimum, codes = minmax_search(x_nB, weight_nB, grid.nmax, grid.start, grid.step, grid.count)
        (d, scales), (dmin, mins) = _largest(scale), _largest(minimum)
    else:
        weight_nB = _element_major(_sigma_weights(x_SE, importance_SE), 32)
        scale, minimum, codes = minmax_search(x_nB, weight_nB, grid.nmax, -0.9, 0.05, 36)
        weight_8S = _sub_block_major(ordered_sum(weight_nB))
        d, scales_8S = positive_search(_sub_block_major(scale), weight_8S, MAX_SCALE_CODE)
        dmin, mins_8S = positive_search(_sub_block_major(minimum), weight_8S, MAX_SCALE_CODE)
        scales, mins = _flat(scales_8S), _flat(mins_8S)
    d16, dmin16 = d.astype(np.float16), dmin.astype(np.float16)
    codes = _encode_with_minimum(x_nB, codes, d16, scales, dmin16, mins, grid.nmax)
    return {
        "d": d16,
        "dmin": dmin16,
        "scales": scales.reshape(-1, 8).astype(np.uint8),
        "mins": mins.reshape(-1, 8).astype(np.uint8),
        "q": codes.T.reshape(-1, SUPER).astype(np.uint8),
    }


def _encode_with_minimum(
    x_nB: Floats, codes_nB: Floats, d_S: np.ndarray, scales_B: Floats, dmin_S: np.ndarray, mins_B: Floats, nmax: int
) -> Floats:
    """Make codes with the scales as stored; where a scale has become 0 the searched ones stay."""
    scale = np.repeat(d_S.astype(np.float32), 8) * scales_B
    minimum = np.repeat(dmin_S.astype(np.float32), 8) * mins_B
    alive = scale != 0
    fresh = np.clip(np.rint((x_nB + minimum) / np.where(alive, scale, np.float32(1))), 0, nmax)
    return np.where(alive, fresh, codes_nB)


def _largest(values_B: Floats) -> tuple[Floats, Floats]:
    """Quantize eight non-negative values a super-block to 0..63 by their largest: (S,) and (S * 8,)."""
    values = values_B.reshape(-1, 8)
    most = values.max(axis=1)
    most = np.where(most > 0, most, np.float32(0))
    alive = most >= NO_STEP
    inverse = np.where(alive, np.float32(MAX_SCALE_CODE) / np.where(alive, most, np.float32(1)), np.float32(0))
    codes = np.clip(np.rint(inverse[:, None] * values), 0, MAX_SCALE_CODE)
    return np.asarray(most / np.float32(MAX_SCALE_CODE), dtype=np.float32), codes.reshape(-1)


def _quantize_q6(x_SE: Floats, importance_SE: Floats | None, fit: Fit) -> Fields:
    x_nB = _element_major(x_SE, 16)
    if fit is Fit.PLAIN:
        scale, codes = np.abs(x_nB).max(axis=0) / np.float32(31), np.zeros_like(x_nB)
    else:
        weight_nB = x_nB * x_nB if importance_SE is None else _element_major(importance_SE, 16)
        scale, codes = symmetric_search(x_nB, weight_nB, 32)
    by_super = scale.reshape(-1, 16)
    extreme = signed_extreme(by_super.T)
    alive = np.abs(extreme) >= TINY
    inverse = np.float32(-128) / np.where(alive, extreme, np.float32(1))
    d16 = np.where(alive, np.float32(1) / inverse, np.float32(0)).astype(np.float16)
    scales = np.where(alive[:, None], np.minimum(np.rint(inverse[:, None] * by_super), 127), np.float32(0))
    step = (d16.astype(np.float32)[:, None] * scales).reshape(-1)
    fresh = np.clip(np.rint(x_nB / np.where(step != 0, step, np.float32(1))), -32, 31)
    q = np.where(step != 0, fresh, codes).T.reshape(-1, SUPER) + 32
    q[~alive] = 0  # the reference clears a whole block of zeros
    return {"d": d16, "scales": scales.astype(np.int8), "q": q.astype(np.uint8)}


def _sigma_weights(x_SE: Floats, importance_SE: Floats) -> Floats:
    """Return v sqrt(2 σ² + x²), σ² over the super-block."""
    squares = x_SE * x_SE
    total = ordered_sum(np.ascontiguousarray(squares.T))
    sigma2 = np.float32(2) * total / np.float32(SUPER)
    return importance_SE * np.sqrt(sigma2[:, None] + squares)


def _element_major(values_SE: Floats, size: int) -> Floats:
    return np.ascontiguousarray(values_SE.reshape(-1, size).T)


def _sub_block_major(values_B: Floats) -> Floats:
    """(S * 8,) to (8, S)."""
    return np.ascontiguousarray(values_B.reshape(-1, 8).T)


def _flat(values_8S: Floats) -> Floats:
    return np.ascontiguousarray(values_8S.T).reshape(-1)
