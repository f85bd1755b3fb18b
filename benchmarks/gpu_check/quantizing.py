"""How long does a layer of the 72B take to quantize on this card, and in how much of its memory?

The parts that the arithmetic is in: the matrix of the inputs, its factor, and rounding with error feedback. Reading the
source and running the layer are not in it: `products` says what the layer's own products take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.results import Cell, Table
from quantize.methods.base import AffineSettings, Statistics
from quantize.methods.gptq import GptqSettings, GptqSolver
from quantize.methods.grids import AffineGrid

SHAPES = {"q/k/v": (10240, 8192), "o": (8192, 8192), "gate/up": (59392, 8192), "down": (8192, 29696)}
LAYERS = 80
TOKENS = 2048
CALIBRATION_TOKENS = 128 * 2048
WITHIN = 0.02
"""Of the loss: a card adds in another order, and a code in the middle may fall to either side."""
Made = TypeVar("Made")
_GRID = AffineGrid(AffineSettings(group_size=128, symmetric=True, min_zero=1))


def run(place: Place) -> Table:
    rows: list[tuple[Cell, ...]] = []
    a_layer = 0.0
    shapes = {"small": (64, 512)} if place.is_rehearsal else SHAPES
    for name, (num_rows, columns) in shapes.items():
        _forget_peak(place)
        stats, adding = _recorded(place, columns)
        summing = adding * CALIBRATION_TOKENS / TOKENS
        solver, factoring = _timed(place, lambda stats=stats: GptqSolver(stats, GptqSettings((128,), 0.01)))
        w_NK = torch.randn(num_rows, columns, device=place.device) * 0.02
        _, solving = _timed(place, lambda solver=solver, w_NK=w_NK: solver.quantize(w_NK, _GRID))
        rows.append((name, summing, factoring, solving, _peak_gb(place)))
        a_layer += summing + factoring + solving
        del stats, solver, w_NK
    notes = (
        f"A layer: {a_layer:.3g} s; {LAYERS} of them: {a_layer * LAYERS / 3600:.2g} h; {CALIBRATION_TOKENS:,} tokens.",
        "Matrices are summed from random inputs; the time is that of 2,048 tokens, times 128.",
    )
    failed = _wrong(place)
    columns_ = ("linears", "matrix, s", "factor, s", "rounding, s", "most memory, GB")
    return Table("GPTQ of a layer of the 72B", columns_, rows, notes, failed)


def _wrong(place: Place) -> tuple[str, ...]:
    """Solve one small weight here and on the CPU; their losses agree."""
    generator = torch.Generator().manual_seed(0)
    x_TK = torch.randn(1024, 512, generator=generator) * torch.rand(512, generator=generator).exp()
    w_NK = torch.randn(96, 512, generator=generator)
    losses = []
    for device in (place.device, torch.device("cpu")):
        stats = Statistics(512, gram=True, device=device)
        stats.add(x_TK.to(device))
        stats.finish()
        solver = GptqSolver(stats, GptqSettings((128,), 0.01))
        losses.append(solver.quantize(w_NK.clone().to(device), _GRID).loss)
    here, there = losses
    return () if abs(here - there) < WITHIN * there else (f"the loss is {here:.4g} here, {there:.4g} on the CPU",)


def _recorded(place: Place, columns: int) -> tuple[Statistics, float]:
    """Return the statistics of random inputs, and the seconds that 2,048 of them took."""
    stats = Statistics(columns, gram=True, means=False, device=place.device)
    x_TK = torch.randn(place.size(TOKENS, 64), columns, device=place.device).bfloat16()
    adding = place.seconds(lambda: stats.add(x_TK), repeats=5)
    stats.finish()
    assert stats.gram_KK is not None, "it was asked for"
    stats.gram_KK.diagonal().add_(float(stats.gram_KK.diagonal().mean()))  # few inputs alone leave it singular
    return stats, adding


def _timed(place: Place, work: Callable[[], Made]) -> tuple[Made, float]:
    """Do work that can be done but once; return what it made, and the seconds it took."""
    made: list[Made] = []
    seconds = place.seconds_once(lambda: made.append(work()))
    return made[0], seconds


def _forget_peak(place: Place) -> None:
    if not place.is_rehearsal:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)


def _peak_gb(place: Place) -> float:
    return 0.0 if place.is_rehearsal else torch.cuda.max_memory_allocated(place.device) / 1e9
