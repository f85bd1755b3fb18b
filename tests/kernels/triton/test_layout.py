"""The packed layout: what it holds, what it costs, what it refuses. No kernel runs here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels.triton import layout
from qlocal.weights import AffineWeight, DenseWeight, Weight
from tests.kernels.triton.weights import BLOCK_TYPES
from tests.kernels.weights import random_affine, random_blocks


@pytest.mark.parametrize("ggml_type", BLOCK_TYPES)
def test_blocks_take_no_more_room_than_in_the_file(ggml_type: GgmlType) -> None:
    weight = random_blocks(ggml_type, 37, 512)
    assert layout.pack(weight, "cpu").num_bytes == weight.blocks.nbytes


@pytest.mark.parametrize("group_size", layout.GROUP_SIZES)
def test_affine_weights_grow_by_less_than_one_percent(group_size: int) -> None:
    weight = random_affine(37, 29568, group_size)
    stored = weight.codes.nbytes + weight.scales.nbytes + weight.zero_points.nbytes / 2
    assert layout.pack(weight, "cpu").num_bytes <= 1.01 * stored


def test_columns_that_fill_no_chunk_are_filled_up() -> None:
    packed = layout.pack(random_affine(3, 96, 32), "cpu")
    assert packed.codes.shape == (1, 3, 16)
    assert packed.scales.shape == (4, 3)
    assert not packed.scales[3].any() and not (packed.codes >> 24).any()


def test_parts_of_the_rows_make_the_same_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_blocks(GgmlType.Q5_K, 9, 256, row_map=True)
    whole = layout.pack(weight, "cpu")
    monkeypatch.setattr(layout, "_PART_ELEMENTS", 600)
    parts = layout.pack(weight, "cpu")
    for name in ("codes", "high", "scales", "fields"):
        assert getattr(parts, name).numpy().tobytes() == getattr(whole, name).numpy().tobytes()


def uneven_groups() -> AffineWeight:
    g_idx = torch.tensor([0] * 33 + [1] * 31, dtype=torch.int32)
    return replace(random_affine(2, 64, 32), g_idx=g_idx)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (DenseWeight(torch.zeros(2, 32)), "not quantized"),
        (random_blocks(GgmlType.IQ4_XS, 1, 256), "no Triton kernels for IQ4_XS"),
        (random_affine(2, 96, 96), "groups of 96 columns"),
        (uneven_groups(), "not equally large"),
    ],
)
def test_a_weight_without_a_layout_is_refused_with_the_reason(weight: Weight, reason: str) -> None:
    assert reason in (layout.unsupported(weight) or "")
