"""GGML blocks against stored bytes of the real encoder, and against their own decoding."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels.reference import dequantize
from quantize.methods import ggml
from quantize.methods.ggml import quantize_ggml

VECTORS = Path(__file__).parents[2] / "golden" / "formats" / "ggml_blocks.json"
TYPES = sorted(ggml.QUANTIZED_TYPES)
K_QUANTS = [GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K]


@pytest.fixture(scope="module")
def vectors() -> dict:  # type: ignore[type-arg]
    return json.loads(VECTORS.read_text())


def floats(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float32).copy())


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
def test_blocks_are_those_of_the_real_encoder(ggml_type: GgmlType, weighted: bool, vectors) -> None:  # type: ignore[no-untyped-def]
    row = floats(vectors["x_f32_b64"])[None]
    importance = floats(vectors["imatrix_f32_b64"]) if weighted else None
    # Without importance the real encoder rounds the types with blocks of 32.
    plain = not weighted and ggml_type not in K_QUANTS
    blocks = quantize_ggml(row, ggml_type, importance, plain=plain).weight.blocks
    expected = vectors["types"][ggml_type.name]["q_imatrix_hex" if weighted else "q_hex"]
    assert blocks.numpy().tobytes().hex() == expected


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
def test_rows_do_not_depend_on_how_many_are_fitted_together(
    ggml_type: GgmlType, monkeypatch: pytest.MonkeyPatch
) -> None:
    w_NK = torch.randn(9, 512, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(512, generator=torch.Generator().manual_seed(1))
    whole = quantize_ggml(w_NK, ggml_type, importance).weight.blocks
    monkeypatch.setattr(ggml, "STRIP_ELEMENTS", 1024)
    assert torch.equal(quantize_ggml(w_NK, ggml_type, importance).weight.blocks, whole)


@pytest.mark.parametrize("ggml_type", TYPES, ids=lambda t: t.name)
def test_zeros_decode_to_exact_zeros(ggml_type: GgmlType) -> None:
    w_NK = torch.randn(4, 512)
    w_NK[1] = 0.0
    w_NK[:, 256:] = 0.0
    for importance in (None, torch.cat([torch.rand(256), torch.zeros(256)])):
        values = dequantize(quantize_ggml(w_NK, ggml_type, importance).weight)
        assert (values[1] == 0).all() and (values[:, 256:] == 0).all()
        assert torch.isfinite(values).all()


@pytest.mark.parametrize("ggml_type", K_QUANTS, ids=lambda t: t.name)
def test_searches_beat_plain_rounding(ggml_type: GgmlType) -> None:
    w_NK = torch.randn(16, 1024, generator=torch.Generator().manual_seed(2))
    importance = torch.rand(1024, generator=torch.Generator().manual_seed(3)).pow(4) + 1e-3
    plain = quantize_ggml(w_NK, ggml_type, importance, plain=True).loss
    searched = quantize_ggml(w_NK, ggml_type, importance).loss
    assert searched < 0.95 * plain
    assert quantize_ggml(w_NK, ggml_type, None).loss < quantize_ggml(w_NK, ggml_type, None, plain=True).loss


def test_columns_never_excited_keep_their_values() -> None:
    w_NK = torch.randn(4, 64)
    importance = torch.cat([torch.zeros(32), torch.ones(32)])
    values = dequantize(quantize_ggml(w_NK, GgmlType.Q4_0, importance).weight)
    assert (values - w_NK).square().mean() < 0.05 * w_NK.square().mean()


def test_loss_is_the_weighted_relative_error() -> None:
    w_NK, importance = torch.randn(8, 256), torch.rand(256)
    result = quantize_ggml(w_NK, GgmlType.Q4_K, importance)
    error = ((dequantize(result.weight) - w_NK).square() * importance).sum() / (w_NK.square() * importance).sum()
    assert result.loss == pytest.approx(float(error), rel=1e-4)
