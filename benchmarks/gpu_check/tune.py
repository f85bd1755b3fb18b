"""Which warps, stages and programs are quickest on this card? Writes them where the kernels look for them."""

from __future__ import annotations

from itertools import cycle, product

import torch

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


def run(place: Place) -> Table:
    source, shape = MadeUp.of(place.device), _SMALL_SHAPE if place.is_rehearsal else _SHAPE
    weights = [
        dispatch.prepare(source.affine(*shape), place.device, torch.bfloat16)
        for _ in range(place.size(_BEYOND_CACHES, 1))
    ]
    best: dict[str, dict[str, int]] = {}
    rows: list[tuple[Cell, ...]] = []
    for tile, tokens in ((1, 1), (8, 5), (16, 16)):
        x = torch.randn(tokens, shape[1], device=place.device).bfloat16()
        timed = {i: _microseconds(place, weights, x, f"gemv {tile}", c) for i, c in enumerate(_candidates(place))}
        default = _microseconds(place, weights, x, f"gemv {tile}", {})
        quickest = min(timed, key=timed.__getitem__)
        best[f"gemv {tile}"] = _CANDIDATES[quickest] if timed[quickest] < 0.98 * default else {}
        rows.append((f"gemv {tile}", default, timed[quickest], str(best[f"gemv {tile}"] or "the default")))
    note = "Nothing is kept of a rehearsal."
    if not place.is_rehearsal:
        path = tuning.write(place.name, {name: fields for name, fields in best.items() if fields})
        note = f"Kept in {path.name} of the cache folder."
    tuning.try_out({})
    return Table("Configurations", ("kernel", "default, us", "best, us", "best"), rows, (note,))


def _candidates(place: Place) -> list[dict[str, int]]:
    return _CANDIDATES[:2] if place.is_rehearsal else _CANDIDATES


def _microseconds(
    place: Place, weights: list[dispatch.PreparedWeight], x: torch.Tensor, what: str, fields: dict[str, int]
) -> float:
    tuning.try_out({what: fields})
    turn = cycle(weights)
    return 1e6 * place.seconds(lambda: dispatch.quant_matmul(x, next(turn)), repeats=20)
