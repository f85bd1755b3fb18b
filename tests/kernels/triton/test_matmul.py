"""The Triton kernels behind `dispatch`: who gets them, and that joined weights are one."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels import dispatch, joining
from qlocal.kernels.triton import layout
from qlocal.weights import DenseWeight
from tests.kernels.triton.weights import expected, relative_error
from tests.kernels.weights import random_affine, random_blocks

CARD = torch.device("cuda")


@pytest.fixture
def card_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CUDA device be asked for: what goes there stays on the CPU."""
    pack = layout.pack
    monkeypatch.setattr(layout, "pack", lambda weight, device: pack(weight, "cpu"))
    monkeypatch.setattr(dispatch, "_move", lambda weight, device: weight)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: name)
    monkeypatch.setattr(dispatch, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))


@pytest.mark.parametrize("num_tokens", [1, 8, 16, 17])
def test_a_card_multiplies_with_triton(interpreted: SimpleNamespace, card_in_memory: None, num_tokens: int) -> None:
    weights = [random_affine(rows, 256, 64, seed=rows) for rows in (40, 9, 16)]
    prepared = dispatch.prepare_joined(weights, CARD, torch.bfloat16)
    assert dispatch.kernel_name(prepared) == "triton" and prepared.shape == (65, 256)
    x = torch.randn(num_tokens, 256)
    result = dispatch.quant_matmul(x, prepared)
    joined = joining.join(weights)
    assert isinstance(joined, type(weights[0]))
    assert relative_error(result, expected(x.bfloat16(), joined)) < (1e-6 if num_tokens <= 16 else 4e-3)


def test_joined_blocks_keep_their_row_maps(interpreted: SimpleNamespace, card_in_memory: None) -> None:
    weights = [random_blocks(GgmlType.Q4_K, rows, 256, seed=rows, row_map=rows == 9) for rows in (9, 40)]
    prepared = dispatch.prepare_joined(weights, CARD, torch.float32)
    x = torch.randn(2, 256)
    truth = torch.cat([expected(x, weight) for weight in weights], dim=1)
    assert relative_error(dispatch.quant_matmul(x, prepared), truth) < 1e-6


def test_what_triton_cannot_read_stays_with_the_reference(card_in_memory: None) -> None:
    prepared = dispatch.prepare(DenseWeight(torch.randn(3, 8)), CARD, torch.bfloat16)
    assert dispatch.kernel_name(prepared) == "reference" and "32 bits of a weight" in (prepared.reason or "")
    asked = dispatch.prepare(random_affine(3, 64, 32), CARD, torch.bfloat16, kernels="reference")
    assert dispatch.kernel_name(asked) == "reference" and asked.reason == "the reference was asked for"


def test_a_card_without_triton_or_too_old_says_so(card_in_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_affine(3, 64, 32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "older than Ampere" in (dispatch.prepare(weight, CARD, torch.bfloat16).reason or "")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert "triton is not installed" in (dispatch.prepare(weight, CARD, torch.bfloat16).reason or "")


def test_a_card_without_a_c_compiler_says_so(card_in_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(dispatch, "which", lambda name: None)
    reason = dispatch.prepare(random_affine(3, 64, 32), CARD, torch.bfloat16).reason
    assert reason is not None and "needs a C compiler: install gcc or clang" in reason


def test_doctor_says_whether_triton_is_used(card_in_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {line.name: line.chosen for line in dispatch.describe()}["triton"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = (line for line in dispatch.describe() if line.name == "triton")
    assert not line.chosen and line.reason == "torch finds no NVIDIA card"


def test_triton_is_loaded_by_the_first_product_only() -> None:
    code = "import sys, qlocal.kernels.dispatch; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
