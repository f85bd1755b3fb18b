"""What lies beside the layers of an AWQ or GPTQ folder: embedding and final norm in F16, the head in F16 or in codes.

A head has as many rows as the vocabulary. It is solved a strip of rows at a time, all with one factor, so that its
values are never there in float32 at once: 5 GB for 72B.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlocal.formats.quantization_config import QuantizationConfig
from qlocal.layers.loader import EMBEDDING
from qlocal.models.base import Role, TensorSpec
from qlocal.weights import AffineWeight
from quantize.estimate import HEAD_STRIP_ELEMENTS
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.grids import AffineGrid
from quantize.methods.rtn import quantize_rtn
from quantize.options import DAMP
from quantize.solvers.base import MIN_EXPERT_TOKENS, LayerResult, LayerTask, affine_settings, stored_linear

Solve = Callable[[Tensor], tuple[AffineWeight, float, float]]
"""Rounds a strip (n, K) f32, which may be overwritten; returns it with the squares of what was lost and was there."""


def solve(task: LayerTask) -> LayerResult:
    """Store everything beside the layers; a head in codes is solved by the matrix of its inputs, where it was taken."""
    assert task.target.settings is not None, "AWQ and GPTQ targets have settings"
    result = LayerResult()
    for spec in task.specs:
        settings = task.target.settings.of(spec)
        if settings is None:
            result.tensors[spec.name] = task.source.read_float16(spec.name)
        else:
            _solve_head(task, spec, settings, result)
    return result


def _solve_head(task: LayerTask, spec: TensorSpec, settings: QuantizationConfig, result: LayerResult) -> None:
    solve_strip = _error_feedback(task, spec, settings, result) or _rounding(settings)
    is_tied = spec.name not in task.source.tensors
    stored: dict[str, list[Tensor]] = {}
    lost = there = 0.0
    for rows in torch.split(task.source.read(EMBEDDING if is_tied else spec.name).data, _strip_rows(spec)):
        weight, lost_here, there_here = solve_strip(rows.to(dtype=torch.float32, copy=True))
        lost, there = lost + lost_here, there + there_here
        for name, part in stored_linear(spec, weight, settings).items():
            stored.setdefault(name, []).append(part)
    for name, parts in stored.items():  # g_idx is of columns, and the same for all rows
        result.tensors[name] = parts[0] if parts[0].dim() == 1 else torch.cat(parts, dim=1)
    loss = lost / there if there > 0 else 0.0
    result.losses[spec.module] = loss
    task.on_loss(spec.module, loss)


def _strip_rows(spec: TensorSpec) -> int:
    """Return the rows of a strip, whole words of eight."""
    return max(8, HEAD_STRIP_ELEMENTS // spec.shape[1] // 8 * 8)


def _error_feedback(
    task: LayerTask, spec: TensorSpec, settings: QuantizationConfig, result: LayerResult
) -> Solve | None:
    """Return rounding that makes up for its errors, or None where calibration saw too little, or was not asked."""
    stats = task.captured.get((Role.HEAD, None))
    if stats is None or stats.tokens < MIN_EXPERT_TOKENS:
        return None
    grid = AffineGrid(affine_settings(settings))
    own = stats.copy(task.device)  # others need it too
    solver = GptqSolver(own, GptqSettings((grid.columns,), DAMP, settings.desc_act))
    if solver.damp > DAMP:
        result.notes.append(f"{spec.module}: damping raised to {solver.damp:.2f}.")
    return lambda strip_NK: solver.solve(strip_NK, grid)


def _rounding(settings: QuantizationConfig) -> Solve:
    grid = affine_settings(settings)

    def solve_strip(strip_NK: Tensor) -> tuple[AffineWeight, float, float]:
        quantized, there = quantize_rtn(strip_NK, grid), float(strip_NK.square().sum(dtype=torch.float64))
        return quantized.weight, quantized.loss * there, there

    return solve_strip
