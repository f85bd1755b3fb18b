"""Any GGML type for any matrix: rows are cut into strips, fitted on several threads, and packed into blocks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from qlocal.formats import ggml_blocks
from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels.reference import dequantize
from qlocal.weights import BlockWeight
from quantize.methods import kquant, legacy_quant
from quantize.methods.base import Quantized
from quantize.methods.kquant import Fit
from quantize.methods.legacy_quant import Fields

STRIP_ELEMENTS = 1 << 16
"""Elements fitted at once: what one search touches stays in the second-level cache."""

QUANTIZED_TYPES = frozenset({*legacy_quant.NUM_LEVELS, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K})


def quantize_ggml(
    w_NK: Tensor, ggml_type: GgmlType, importance_K: Tensor | None, *, plain: bool = False
) -> Quantized[BlockWeight]:
    """Quantize to one of the block types. w_NK: (N, K) of any float dtype on the CPU, widened to f32 a strip at a
    time; K is a multiple of the type's block.

    importance_K: (K,) f32 mean x² of the inputs, or None. plain: rounding without any search, for comparison.
    The loss weighs columns by their importance.
    """
    assert ggml_type in QUANTIZED_TYPES, f"{ggml_type.name} is not made here"
    importance = None if importance_K is None or plain else _positive(importance_K)
    strips = torch.split(w_NK, max(1, STRIP_ELEMENTS // w_NK.shape[1]))

    def one(stored_NK: Tensor) -> tuple[Tensor, float, float]:
        strip_NK = stored_NK.float()
        fields = fit_rows(strip_NK.numpy(), ggml_type, importance, plain=plain)
        blocks = pack(fields, ggml_type, len(strip_NK))
        return blocks, *_errors(strip_NK, BlockWeight(blocks, ggml_type, strip_NK.shape[1]), importance_K)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        done = list(pool.map(one, strips))
    error, total = sum(d[1] for d in done), sum(d[2] for d in done)
    weight = BlockWeight(torch.cat([d[0] for d in done]), ggml_type, w_NK.shape[1])
    return Quantized(weight, error / total if total > 0 else 0.0)


def fit_rows(x_NK: np.ndarray, ggml_type: GgmlType, importance_K: np.ndarray | None, *, plain: bool = False) -> Fields:
    """Return the fields of all blocks of (N, K) f32 rows, as arrays over blocks."""
    if LAYOUTS[ggml_type].block_size == legacy_quant.BLOCK:
        return legacy_quant.quantize_rows(x_NK, ggml_type, importance_K)
    return kquant.quantize_rows(x_NK, ggml_type, importance_K, Fit.PLAIN if plain else Fit.SEARCH)


def pack(fields: Fields, ggml_type: GgmlType, rows: int) -> Tensor:
    """Return the bytes (N, row_bytes) uint8 of fitted fields."""
    function, names = _PACKERS[ggml_type]
    return function(*(torch.from_numpy(np.ascontiguousarray(fields[name])).reshape(rows, -1) for name in names))


_PACKERS: dict[GgmlType, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    GgmlType.Q4_0: (ggml_blocks.pack_q4_0, ("d", "q")),
    GgmlType.Q4_1: (ggml_blocks.pack_q4_1, ("d", "m", "q")),
    GgmlType.Q5_0: (ggml_blocks.pack_q5_0, ("d", "q")),
    GgmlType.Q5_1: (ggml_blocks.pack_q5_1, ("d", "m", "q")),
    GgmlType.Q8_0: (ggml_blocks.pack_q8_0, ("d", "q")),
    GgmlType.Q4_K: (ggml_blocks.pack_q4_k, ("d", "dmin", "scales", "mins", "q")),
    GgmlType.Q5_K: (ggml_blocks.pack_q5_k, ("d", "dmin", "scales", "mins", "q")),
    GgmlType.Q6_K: (ggml_blocks.pack_q6_k, ("d", "scales", "q")),
}


def _positive(importance_K: Tensor) -> np.ndarray:
    """Lift columns that calibration never excited: with weight 0 a block of them would be fitted as nothing."""
    values = importance_K.float()
    if float(values.max()) <= 0:
        return np.ones(len(values), dtype=np.float32)
    return values.clamp(min=1e-6 * float(values.mean())).numpy()


def _errors(w_NK: Tensor, weight: BlockWeight, importance_K: Tensor | None) -> tuple[float, float]:
    """Return the weighted squares of what was lost and of what was there."""
    weights_K = torch.ones(w_NK.shape[1]) if importance_K is None else importance_K
    difference = (dequantize(weight) - w_NK).square_().sum(0, dtype=torch.float64)
    return float((difference * weights_K).sum()), float((w_NK.square().sum(0, dtype=torch.float64) * weights_K).sum())
