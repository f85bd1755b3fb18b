"""How much of the card's bandwidth do products of a few tokens reach, and how much of its arithmetic those of many?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import torch

from benchmarks.gpu_check.made_up import GROUP_SIZE, MadeUp
from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.results import Cell, Table
from qlocal.kernels import dispatch

SHAPES = {"q/k/v": (10240, 8192), "o": (8192, 8192), "gate/up": (59136, 8192), "down": (8192, 29568)}
_BEYOND_CACHES = 512 << 20
"""Bytes of equal weights that take turns, so that none is in the second-level cache."""


def few(place: Place) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, (num_rows, columns) in shapes(place).items():
        weights = made_weights(place, num_rows, columns)
        packed = weights[0].packed
        assert packed is not None, "int4 weights are packed on a card"
        peer = _torch_int4(place, num_rows, columns)
        for tokens in (1, 2, 4, 8, 16):
            x = torch.randn(tokens, columns, device=place.device).bfloat16()
            turn = cycle(weights)
            seconds = place.seconds(lambda x=x, turn=turn: dispatch.quant_matmul(x, next(turn)), repeats=50)
            rate = packed.num_bytes / seconds / 1e9
            rows.append((name, tokens, 1e6 * seconds, rate, rate / place.read_gb_per_s, _peer_us(place, peer, x)))
    columns_ = ("product", "tokens", "us", "GB/s", "share of bandwidth", "torch's int4, us")
    note = "Distinct weights take turns. Launching from Python is part of the time; a recorded step has less of it."
    return Table("Products of a few tokens, int4 g128", columns_, rows, (note,))


def many(place: Place) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, (num_rows, columns) in shapes(place).items():
        weight = made_weights(place, num_rows, columns)[0]
        dense = torch.randn(num_rows, columns, device=place.device).bfloat16()
        for tokens in (512, 2048) if not place.is_rehearsal else (17,):
            x = torch.randn(tokens, columns, device=place.device).bfloat16()
            ours, int8 = (
                place.seconds(lambda x=x, weight=each: dispatch.quant_matmul(x, weight), repeats=10)
                for each in (weight, replace(weight, is_int8=True))
            )
            cublas = place.seconds(lambda x=x, dense=dense: x @ dense.T, repeats=10)
            flops = 2e-12 * tokens * num_rows * columns
            rows.append((name, tokens, flops / ours, flops / cublas, cublas / ours, flops / int8, ours / int8))
    columns_ = ("product", "tokens", "TFLOP/s", "bf16 cuBLAS TFLOP/s", "share", "int8 TOP/s", "times as fast")
    return Table("Products of many tokens, int4 g128", columns_, rows)


def shapes(place: Place) -> dict[str, tuple[int, int]]:
    return {"small": (70, 256)} if place.is_rehearsal else SHAPES


def made_weights(place: Place, num_rows: int, columns: int) -> list[dispatch.PreparedWeight]:
    source = MadeUp.of(place.device)
    count = place.size(-(-_BEYOND_CACHES * 2 // (num_rows * columns)) + 1, 1)
    weights = (source.affine(num_rows, columns) for _ in range(count))
    return [dispatch.prepare(weight, place.device, torch.bfloat16) for weight in weights]


def _torch_int4(place: Place, num_rows: int, columns: int) -> Callable[[torch.Tensor], torch.Tensor] | str:
    """Return torch's own int4 product of the shape, or why there is none."""
    if place.is_rehearsal:
        return "not rehearsed"
    try:
        codes = torch.randint(0, 256, (num_rows, columns // 2), dtype=torch.uint8, device=place.device)
        packed = torch._convert_weight_to_int4pack(codes, 8)
        scales = torch.rand(columns // GROUP_SIZE, num_rows, 2, device=place.device).bfloat16()
        torch._weight_int4pack_mm(torch.zeros(1, columns, device=place.device).bfloat16(), packed, GROUP_SIZE, scales)
    except RuntimeError as error:
        return str(error).splitlines()[0][:60]
    return lambda x: torch._weight_int4pack_mm(x, packed, GROUP_SIZE, scales)


def _peer_us(place: Place, peer: Callable[[torch.Tensor], torch.Tensor] | str, x: torch.Tensor) -> Cell:
    return peer if isinstance(peer, str) else 1e6 * place.seconds(lambda: peer(x), repeats=50)
