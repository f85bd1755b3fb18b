"""Any GGML type for any matrix: fitted and packed by native code, or where that is absent by numpy, strip by strip."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from qlocal.formats import ggml_blocks
from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.kernels import native
from qlocal.kernels.quantize_blocks import BLOCK_TYPES as QUANTIZED_TYPES
from qlocal.kernels.quantize_blocks import Fit, quantize_blocks
from qlocal.kernels.reference import dequantize
from qlocal.weights import BlockWeight
from quantize.methods import kquant, legacy_quant
from quantize.methods.base import Quantized
from quantize.methods.legacy_quant import Fields

STRIP_ELEMENTS = 1 << 16
"""Elements fitted at once: what one search touches stays in the second-level cache."""


def quantize_ggml(
    w_NK: Tensor, ggml_type: GgmlType, importance_K: Tensor | None, *, plain: bool = False
) -> Quantized[BlockWeight]:
    """Quantize to one of the block types. w_NK: (N, K) f32, f16 or bf16 on the CPU; K a multiple of the type's block.

    importance_K: (K,) f32 mean x² of the inputs, or None. plain: rounding without any search, for comparison.
    The loss weighs columns by their importance. Native code and numpy give the same blocks.
    """
    assert ggml_type in QUANTIZED_TYPES, f"{ggml_type.name} is not made here"
    fit, importance = Fit.PLAIN if plain else Fit.SEARCH, None
    if importance_K is not None and not plain:
        fit, importance = Fit.WEIGHTED, _positive(importance_K)
    library = native.load()
    if isinstance(library, native.Library):
        blocks, errors = quantize_blocks(library, w_NK, ggml_type, fit, importance, importance_K)
    else:
        blocks, errors = _quantize_strips(w_NK, ggml_type, fit, importance, importance_K)
    error, total = errors.sum(0).tolist()
    return Quantized(BlockWeight(blocks, ggml_type, w_NK.shape[1]), error / total if total > 0 else 0.0)


def _quantize_strips(
    w_NK: Tensor, ggml_type: GgmlType, fit: Fit, importance: Tensor | None, error_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Do with numpy what `quantize_blocks` does, a strip of rows at a time on several threads."""
    importance_K = None if importance is None else importance.numpy()

    def one(stored_NK: Tensor) -> tuple[Tensor, Tensor]:
        strip_NK = stored_NK.float()
        blocks = pack(fit_rows(strip_NK.numpy(), ggml_type, importance_K, fit), ggml_type, len(strip_NK))
        return blocks, _errors(strip_NK, BlockWeight(blocks, ggml_type, strip_NK.shape[1]), error_weights)

    strips = torch.split(w_NK, max(1, STRIP_ELEMENTS // w_NK.shape[1]))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        blocks, errors = zip(*pool.map(one, strips), strict=True)
    return torch.cat(blocks), torch.cat(errors)


def fit_rows(x_NK: np.ndarray, ggml_type: GgmlType, importance_K: np.ndarray | None, fit: Fit) -> Fields:
    """Return the fields of all blocks of (N, K) f32 rows, as arrays over blocks."""
    if LAYOUTS[ggml_type].block_size == legacy_quant.BLOCK:
        return legacy_quant.quantize_rows(x_NK, ggml_type, importance_K, fit)
    return kquant.quantize_rows(x_NK, ggml_type, importance_K, fit)


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


def _positive(importance_K: Tensor) -> Tensor:
    """Lift columns that calibration never excited: with weight 0 a block of them would be fitted as nothing."""
    values = importance_K.float()
    if float(values.max()) <= 0:
        return torch.ones(len(values))
    return values.clamp(min=1e-6 * float(values.mean()))


def _errors(w_NK: Tensor, weight: BlockWeight, error_weights_K: Tensor | None) -> Tensor:
    """Return the weighted squares of what was lost and of what was there, a row: (N, 2) f64."""
    weights_K = torch.ones(w_NK.shape[1]) if error_weights_K is None else error_weights_K.float()
    lost, there = (dequantize(weight) - w_NK).square_(), w_NK.square()
    return torch.stack([(squares * weights_K).sum(1, dtype=torch.float64) for squares in (lost, there)], dim=1)
