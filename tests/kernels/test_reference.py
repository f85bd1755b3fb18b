"""The reference against stored vectors of llama.cpp, AutoAWQ and GPTQModel, and against the gguf package."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qlocal.ggml_types import GgmlType
from qlocal.kernels.reference import dequantize, quant_matmul, select_rows
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight
from tests.kernels.weights import QUANTIZED_TYPES, random_affine, random_blocks

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
BLOCKS: dict[str, Any] = json.loads((GOLDEN / "ggml_blocks.json").read_text())["types"]
AFFINE: dict[str, Any] = json.loads((GOLDEN / "awq_gptq_small.json").read_text())
# AWQ stores the eight columns of a word in this order of nibbles.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def array(entry: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(entry["b64"]), dtype=entry["dtype"]).reshape(entry["shape"])


def nibbles(words: np.ndarray, axis: int, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Unpack int32 words to eight codes each along `axis`; code i stands in nibble position of `order`."""
    slots = np.stack([(words.view(np.uint32) >> (4 * k)) & 15 for k in range(8)], axis=-1)
    slots = slots[..., np.argsort(order)] if order != tuple(range(8)) else slots
    moved = np.moveaxis(slots, -1, axis + 1)
    shape = list(words.shape)
    shape[axis] *= 8
    return moved.reshape(shape).astype(np.uint8)


def neutral(codes_kn: np.ndarray, scales_gn: np.ndarray, zeros_gn: np.ndarray, group_size: int) -> AffineWeight:
    codes_nk = codes_kn.T
    packed = codes_nk[:, ::2] | (codes_nk[:, 1::2] << 4)
    return AffineWeight(
        codes=torch.from_numpy(packed.copy()),
        scales=torch.from_numpy(scales_gn.T.copy()),
        zero_points=torch.from_numpy(zeros_gn.T.copy()),
        group_size=group_size,
    )


def expect_dequant(weight: AffineWeight, entry: dict[str, Any]) -> None:
    assert torch.equal(dequantize(weight).half(), torch.from_numpy(array(entry["dequant"]).T.copy()))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_blocks_have_the_stored_values(name: str) -> None:
    entry = BLOCKS[name]
    raw = np.frombuffer(bytes.fromhex(entry["q_hex"]), dtype=np.uint8).reshape(1, -1)
    weight = BlockWeight(torch.from_numpy(raw.copy()), GgmlType[name], 256)
    expected = np.frombuffer(base64.b64decode(entry["deq_f32_b64"]), dtype=np.float32)
    assert dequantize(weight).numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("ggml_type", QUANTIZED_TYPES)
@pytest.mark.parametrize("shape", [(1, 256), (3, 768), (17, 512)])
def test_random_blocks_agree_with_the_gguf_package_bit_for_bit(ggml_type: GgmlType, shape: tuple[int, int]) -> None:
    weight = random_blocks(ggml_type, *shape, seed=shape[0])
    expected = gguf.quants.dequantize(weight.blocks.numpy(), gguf.GGMLQuantizationType(ggml_type))
    assert torch.equal(dequantize(weight), torch.from_numpy(expected))


@pytest.mark.parametrize("ggml_type", [t for t in QUANTIZED_TYPES if BLOCKS[t.name]["block"] == 32])
def test_rows_may_hold_an_odd_number_of_small_blocks(ggml_type: GgmlType) -> None:
    weight = random_blocks(ggml_type, 5, 32 * 7)
    expected = gguf.quants.dequantize(weight.blocks.numpy(), gguf.GGMLQuantizationType(ggml_type))
    assert torch.equal(dequantize(weight), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("ggml_type", "dtype"),
    [(GgmlType.F32, torch.float32), (GgmlType.F16, torch.float16), (GgmlType.BF16, torch.bfloat16)],
)
def test_float_rows_are_exact(ggml_type: GgmlType, dtype: torch.dtype) -> None:
    data = torch.randn(3, 10).to(dtype)
    expected = data.float()
    assert torch.equal(dequantize(BlockWeight(data.view(torch.uint8), ggml_type, 10)), expected)
    assert torch.equal(dequantize(DenseWeight(data)), expected)


@pytest.mark.parametrize("name", ["gptq_sym", "gptq_asym", "gptq_sym_desc_act"])
def test_gptq_vectors_hold_after_one_rounding_to_f16(name: str) -> None:
    entry = AFFINE[name]
    codes = nibbles(array(entry["qweight"]), axis=0)
    zeros = nibbles(array(entry["qzeros_v2"]), axis=1)
    weight = neutral(codes, array(entry["scales"]), zeros, entry["group_size"])
    g_idx = torch.from_numpy(array(entry["g_idx"]).copy())
    expect_dequant(AffineWeight(weight.codes, weight.scales, weight.zero_points, weight.group_size, g_idx), entry)
    if not entry["desc_act"]:
        expect_dequant(weight, entry)


def test_awq_vector_holds_after_one_rounding_to_f16() -> None:
    entry = AFFINE["awq"]
    codes = nibbles(array(entry["qweight"]), axis=1, order=AWQ_ORDER)
    zeros = nibbles(array(entry["qzeros"]), axis=1, order=AWQ_ORDER)
    expect_dequant(neutral(codes, array(entry["scales"]), zeros, entry["group_size"]), entry)


def test_one_group_may_span_the_row() -> None:
    weight = random_affine(4, 96, group_size=96)
    low = (weight.codes[2, 5] & 15).float() - weight.zero_points[2, 0].float()
    assert dequantize(weight)[2, 10] == low * weight.scales[2, 0].float()


def test_row_map_gives_the_model_its_own_order() -> None:
    weight = random_blocks(GgmlType.Q4_0, 9, 64, row_map=True)
    assert weight.row_map is not None
    plain = dequantize(BlockWeight(weight.blocks, weight.ggml_type, weight.columns))
    assert torch.equal(dequantize(weight), plain[weight.row_map])
    dense = DenseWeight(plain, weight.row_map)
    assert torch.equal(dequantize(dense), plain[weight.row_map])


def test_selected_rows_are_the_rows_of_the_whole() -> None:
    ids = torch.tensor([3, 0, 3, 8])
    weights = (
        random_blocks(GgmlType.Q6_K, 9, 256, row_map=True),
        random_affine(9, 64, 32, act_order=True),
        DenseWeight(torch.randn(9, 7), torch.arange(9).flip(0)),
    )
    for weight in weights:
        assert torch.equal(dequantize(select_rows(weight, ids)), dequantize(weight)[ids])


def test_matmul_uses_the_values_of_dequantize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlocal.kernels.reference.values._CHUNK_ELEMENTS", 600)
    weight = random_blocks(GgmlType.Q5_K, 7, 256, row_map=True)
    x = torch.randn(3, 256)
    values = dequantize(weight)
    rounding = 1e-6 * float((x.abs() @ values.abs().T).max())  # sums in another order
    torch.testing.assert_close(quant_matmul(x, weight), x @ values.T, rtol=0, atol=rounding)
    assert quant_matmul(x, weight).shape == (3, 7)
