"""AWQ's stored tensors (gemm layout) to and from the neutral weight. Bytes: `docs/formats.md`."""

from __future__ import annotations

from torch import Tensor

from qlocal.formats import packing
from qlocal.weights import AffineWeight

PARTS = ("qweight", "qzeros", "scales")


def part_shapes(rows: int, columns: int, group_size: int) -> dict[str, tuple[int, int]]:
    """Return the stored shape of every part of an (N, K) linear."""
    groups = columns // group_size
    return {"qweight": (columns, rows // 8), "qzeros": (groups, rows // 8), "scales": (groups, rows)}


def decode(qweight: Tensor, qzeros: Tensor, scales: Tensor, group_size: int) -> AffineWeight:
    """Return the weight of stored tensors of the shapes of `part_shapes`; nothing is rounded."""
    return AffineWeight(
        codes=packing.codes_from_awq(qweight),
        scales=scales.T.contiguous(),
        zero_points=packing.zeros_from_words(qzeros, packing.AWQ_INVERSE),
        group_size=group_size,
    )


def encode(weight: AffineWeight) -> dict[str, Tensor]:
    """Return the stored tensors by part name. N and K must be multiples of 8 and of the group; no g_idx."""
    assert weight.g_idx is None, "AWQ has no g_idx: its methods keep the order of columns"
    return {
        "qweight": packing.codes_to_awq(weight.codes),
        "qzeros": packing.zeros_to_words(weight.zero_points, packing.AWQ_ORDER),
        "scales": weight.scales.T.contiguous(),
    }
