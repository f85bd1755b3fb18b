"""Which warps, stages and programs are quickest on this card? Writes them where the kernels look for them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import cycle, product

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu_check.made_up import MadeUp
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.results import Cell, Table
from qlocal.kernels import dispatch
from qlocal.kernels.triton import tuning

_SHAPE, _SMALL_SHAPE = (10240, 8192), (70, 256)
_BEYOND_CACHES = 8
_CANDIDATES = [
    {"num_warps": warps, "num_stages": stages, "programs": programs}
    for warps, stages, programs in product((1, 2, 4, 8), (1, 2, 3, 4), (4, 8, 16))
]
_OF_GEMM = [{"num_warps": warps, "num_stages": stages} for warps, stages in product((4, 8), (1, 2, 3, 4))]
_GEMM_TOKENS = ((32, 32), (64, 64), (128, 512))


def run(place: Place) -> Table:
    source, shape = MadeUp.of(place.device), _SMALL_SHAPE if place.is_rehearsal else _SHAPE
    weights = [
        dispatch.prepare(source.affine(*shape), place.device, torch.bfloat16)
        for _ in range(place.size(_BEYOND_CACHES, 1))
    ]
    best: dict[str, dict[str, int]] = {}
    rows: list[tuple[Cell, ...]] = []
    for kernel, candidates, tile, tokens in _forms(place):
        what = f"{kernel} {tile}"
        x = torch.randn(tokens, shape[1], device=place.device).bfloat16()
        asked = [replace(weight, is_int8=kernel == "gemm_int8") for weight in weights]
        timed = {i: _microseconds(place, asked, x, what, fields) for i, fields in enumerate(candidates)}
        default = _microseconds(place, asked, x, what, {})
        quickest = min(timed, key=timed.__getitem__)
        best[what] = candidates[quickest] if timed[quickest] < 0.98 * default else {}
        rows.append((what, default, timed[quickest], str(best[what] or "the default")))
    note = "Nothing is kept of a rehearsal."
    if not place.is_rehearsal:
        path = tuning.write(place.name, {name: fields for name, fields in best.items() if fields})
        note = f"Kept in {path.name} of the cache folder."
    tuning.try_out({})
    return Table("Configurations", ("kernel", "default, us", "best, us", "best"), rows, (note,))


def _forms(place: Place) -> list[tuple[str, list[dict[str, int]], int, int]]:
    """Return what is tried: kernel, candidates, tile of tokens, and a number of tokens that takes it."""
    few = [("gemv", _CANDIDATES, tile, tokens) for tile, tokens in ((1, 1), (8, 5), (16, 16))]
    many = [(kernel, _OF_GEMM, tile, tokens) for kernel in ("gemm", "gemm_int8") for tile, tokens in _GEMM_TOKENS]
    if place.is_rehearsal:
        return [(kernel, candidates[:2], tile, min(tokens, 17)) for kernel, candidates, tile, tokens in few + many[::3]]
    return few + many


def _microseconds(
    place: Place, weights: list[dispatch.PreparedWeight], x: torch.Tensor, what: str, fields: dict[str, int]
) -> float:
    tuning.try_out({what: fields})
    turn = cycle(weights)
    try:
        return 1e6 * place.seconds(lambda: dispatch.quant_matmul(x, next(turn)), repeats=20)
    except OutOfResources:  # more shared memory than this card gives a program
        return math.inf
