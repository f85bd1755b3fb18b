"""Choosing a kernel: what is chosen, what is said about it, and the operations that need no native code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlocal.errors import UsageError
from qlocal.ggml_types import GgmlType
from qlocal.kernels import benchmark, dispatch, native, reference
from qlocal.weights import DenseWeight
from tests.kernels.weights import random_affine, random_blocks


def test_the_reference_can_be_asked_for() -> None:
    weight = random_affine(9, 64, 32, act_order=True)
    prepared = dispatch.prepare(weight, "cpu", torch.bfloat16, kernels="reference")
    assert dispatch.kernel_name(prepared) == "reference"
    x = torch.randn(3, 64)
    expected = x.bfloat16().float() @ reference.dequantize(weight).T
    torch.testing.assert_close(dispatch.quant_matmul(x, prepared), expected)


def test_an_unknown_choice_of_kernels_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no 'fast' kernels. One of auto, reference"):
        dispatch.prepare(random_affine(1, 32, 32), "cpu", torch.float32, kernels="fast")


def test_no_tokens_give_no_rows() -> None:
    prepared = dispatch.prepare(random_blocks(GgmlType.Q4_0, 9, 64), "cpu", torch.bfloat16)
    assert dispatch.quant_matmul(torch.zeros(0, 64), prepared).shape == (0, 9)


def test_embedding_rows_are_rows_of_the_whole_table() -> None:
    ids = torch.tensor([5, 5, 0, 8])
    for weight in (
        random_blocks(GgmlType.Q6_K, 9, 256),
        random_affine(9, 64, 32),
        DenseWeight(torch.randn(9, 10).bfloat16()),
    ):
        assert torch.equal(dispatch.embedding_rows(weight, ids), reference.dequantize(weight)[ids])


def test_bf16_products_leave_torch_as_they_found_it() -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    prepared = dispatch.prepare(random_blocks(GgmlType.Q4_0, 9, 64), "cpu", torch.bfloat16)
    dispatch.quant_matmul(torch.randn(20, 64), prepared)
    assert setting.fp32_precision == before


def test_native_kernels_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, fresh_load: None) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, "none")
    prepared = dispatch.prepare(random_affine(3, 32, 32), "cpu", torch.float32)
    assert prepared.reason == "QLOCAL_CPU_ISA=none turns them off"
    lines = dispatch.describe()
    assert [line.name for line in lines if line.chosen] == ["reference"]
    assert all(line.reason for line in lines)


def test_an_instruction_set_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, fresh_load: None) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, "sse9")
    with pytest.raises(UsageError, match=r"QLOCAL_CPU_ISA=sse9 .* One of avx2, avx512, avx512_vnni, amx, none"):
        native.load()


def test_a_missing_library_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch, fresh_load: None) -> None:
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    monkeypatch.setattr(native, "_find", lambda: None)
    prepared = dispatch.prepare(random_affine(3, 32, 32), "cpu", torch.float32)
    assert prepared.reason is not None and "no C++ compiler" in prepared.reason
    assert dispatch.describe()[-1].chosen


def test_a_broken_library_is_said_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, fresh_load: None, tmp_path: Path
) -> None:
    monkeypatch.delenv(native.ISA_VARIABLE, raising=False)
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "_find", lambda: broken)
    library = native.load()
    assert isinstance(library, native.Absent) and "_native.so cannot be loaded" in library.reason


def test_one_instruction_set_is_chosen_and_the_others_are_explained(isa: str) -> None:
    lines = {line.name: line for line in dispatch.describe()}
    assert lines[isa].chosen and "avx2" in lines[isa].reason
    assert not lines["reference"].chosen
    assert all(line.reason for line in lines.values())


def test_the_benchmark_measures_every_storage_it_is_given() -> None:
    rows = benchmark.run(("awq", "bf16", "q4_k"), (1, 9), 32, 256, repeats=1, cold_bytes=1 << 16)
    assert [(row.storage, row.tokens) for row in rows] == [(s, t) for s in ("awq", "bf16", "q4_k") for t in (1, 9)]
    assert all(row.native_s > 0 and row.reference_s > 0 and row.share > 0 for row in rows)
