"""GPTQ's stored tensors, versions 1 and 2, to and from the neutral weight. Bytes: `docs/formats.md`."""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.errors import FormatError
from qlocal.formats import packing
from qlocal.formats.quantization_config import QuantizationConfig
from qlocal.weights import AffineWeight

PARTS = ("qweight", "qzeros", "scales", "g_idx")
_ONES = 0x11111111
_EIGHTS_V2 = 0x88888888 - (1 << 32)  # as int32
_EIGHTS_V1 = 0x77777777


def part_shapes(rows: int, columns: int, group_size: int) -> dict[str, tuple[int, ...]]:
    """Return the stored shape of every part of an (N, K) linear."""
    groups = columns // group_size
    return {
        "qweight": (columns // 8, rows),
        "qzeros": (groups, rows // 8),
        "scales": (groups, rows),
        "g_idx": (columns,),
    }


def decode(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, config: QuantizationConfig, where: str
) -> AffineWeight:
    """Return the weight of stored tensors of the shapes of `part_shapes`; nothing is rounded.

    g_idx decides about the order of columns, whatever desc_act says. FormatError when a group does not exist,
    or when a symmetric file holds other zero points than 8.
    """
    columns = qweight.shape[0] * 8
    group_size = config.groups(columns)
    return AffineWeight(
        codes=packing.codes_from_gptq(qweight),
        scales=scales.T.contiguous(),
        zero_points=packing.zeros_from_words(_words_v2(qzeros, config, where)),
        group_size=group_size,
        g_idx=column_groups(g_idx, columns, group_size, where),
    )


def encode(weight: AffineWeight, config: QuantizationConfig) -> dict[str, Tensor]:
    """Return the stored tensors by part name; g_idx is always among them, as peers need it."""
    columns = weight.shape[1]
    assert weight.g_idx is None or config.desc_act, "readers drop a permuted g_idx when desc_act is false"
    assert config.checkpoint_format == "gptq_v2" or config.symmetric, "version 1 cannot hold a zero point of 0"
    words = packing.zeros_to_words(weight.zero_points)
    g_idx = torch.arange(columns, dtype=torch.int32) // weight.group_size if weight.g_idx is None else weight.g_idx
    return {
        "qweight": packing.codes_to_gptq(weight.codes),
        "qzeros": words if config.checkpoint_format == "gptq_v2" else words - _ONES,
        "scales": weight.scales.T.contiguous(),
        "g_idx": g_idx.to(torch.int32).contiguous(),
    }


def _words_v2(qzeros: Tensor, config: QuantizationConfig, where: str) -> Tensor:
    """Return the zero points as version 2 stores them.

    Version 1 is the whole word minus 0x11111111, with borrows, so it is added to the whole word, wrapping.
    Symmetric files with a wrong label exist; there the words themselves tell the version.
    """
    is_v1 = config.checkpoint_format == "gptq"
    if config.symmetric:
        if bool((qzeros == _EIGHTS_V2).all()):
            is_v1 = False
        elif bool((qzeros == _EIGHTS_V1).all()):
            is_v1 = True
        else:
            raise FormatError(
                f"{where}.qzeros: quantization_config says sym, but not all zero points are 8",
                hint="The file is damaged or its quantization_config is wrong.",
            )
    return qzeros + _ONES if is_v1 else qzeros


def column_groups(g_idx: Tensor | None, columns: int, group_size: int, where: str) -> Tensor | None:
    """Return g_idx (K,), or None where it only says k // group_size; FormatError when a group does not exist."""
    if g_idx is None:
        return None
    groups = columns // group_size
    if bool((g_idx < 0).any()) or bool((g_idx >= groups).any()):
        raise FormatError(f"{where}.g_idx: holds {int(g_idx.max())}, expected groups from 0 to {groups - 1}")
    natural = torch.arange(columns, dtype=g_idx.dtype) // group_size
    return None if torch.equal(g_idx, natural) else g_idx
