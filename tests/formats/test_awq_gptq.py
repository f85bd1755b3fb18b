"""AWQ and GPTQ tensors against words written by AutoAWQ 0.2.9 and GPTQModel 7.7.0, bit for bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from qlocal.errors import FormatError
from qlocal.formats import awq, gptq, packing
from qlocal.formats.quantization_config import QuantizationConfig
from qlocal.weights import AffineWeight
from tests.formats import golden

VECTORS = golden.load("awq_gptq_small.json")
GPTQ_CASES = ["gptq_sym", "gptq_asym", "gptq_sym_desc_act"]
LABELS = {"v1": "gptq", "v2": "gptq_v2"}


def _dequantized(weight: AffineWeight) -> torch.Tensor:
    """(N, K) f16: (code - zero) * scale in f32, rounded once."""
    rows, columns = weight.shape
    groups = torch.arange(columns) // weight.group_size if weight.g_idx is None else weight.g_idx.long()
    codes = packing.unpack_codes(weight.codes).float()
    values = (codes - weight.zero_points.float()[:, groups]) * weight.scales.float()[:, groups]
    assert values.shape == (rows, columns)
    return values.to(torch.float16)


def _gptq_config(case: dict[str, Any], version: str) -> QuantizationConfig:
    return QuantizationConfig("gptq", case["group_size"], case["sym"], LABELS[version], case["desc_act"])


def _decode_gptq(case: dict[str, Any], version: str, config: QuantizationConfig | None = None) -> AffineWeight:
    parts = [golden.tensor(case[name]) for name in ("qweight", f"qzeros_{version}", "scales", "g_idx")]
    return gptq.decode(*parts, config or _gptq_config(case, version), "model.safetensors: q_proj")


def test_awq_decodes_to_the_peers_values() -> None:
    case = VECTORS["awq"]
    weight = awq.decode(*(golden.tensor(case[p]) for p in awq.PARTS), group_size=case["group_size"])
    assert torch.equal(_dequantized(weight).T, golden.tensor(case["dequant"]))


def test_awq_encodes_to_the_peers_words() -> None:
    case = VECTORS["awq"]
    stored = {p: golden.tensor(case[p]) for p in awq.PARTS}
    encoded = awq.encode(awq.decode(**stored, group_size=case["group_size"]))
    for part in awq.PARTS:
        assert torch.equal(encoded[part], stored[part]) and encoded[part].dtype == stored[part].dtype


@pytest.mark.parametrize("version", LABELS)
@pytest.mark.parametrize("name", GPTQ_CASES)
def test_gptq_decodes_to_the_peers_values(name: str, version: str) -> None:
    case = VECTORS[name]
    weight = _decode_gptq(case, version)
    assert torch.equal(_dequantized(weight).T, golden.tensor(case["dequant"]))
    assert (weight.g_idx is not None) == (name == "gptq_sym_desc_act")


@pytest.mark.parametrize(
    ("name", "version"),
    [("gptq_sym", "v1"), ("gptq_sym", "v2"), ("gptq_sym_desc_act", "v1"), ("gptq_asym", "v2")],
)
def test_gptq_encodes_to_the_peers_words(name: str, version: str) -> None:
    case = VECTORS[name]
    encoded = gptq.encode(_decode_gptq(case, version), _gptq_config(case, version))
    for part in ("qweight", "scales", "g_idx"):
        assert torch.equal(encoded[part], golden.tensor(case[part])), part
    assert torch.equal(encoded["qzeros"], golden.tensor(case[f"qzeros_{version}"]))


def test_version_1_zero_points_borrow_across_nibbles() -> None:
    case = VECTORS["gptq_asym"]
    weight = _decode_gptq(case, "v1")
    assert int(weight.zero_points.min()) == 0 and int(weight.zero_points.max()) == 15


@pytest.mark.parametrize(("stored", "label"), [("v1", "v2"), ("v2", "v1")])
def test_a_symmetric_file_with_the_wrong_version_is_read_by_its_words(stored: str, label: str) -> None:
    case = VECTORS["gptq_sym"]
    weight = _decode_gptq(case, stored, _gptq_config(case, label))
    assert torch.equal(_dequantized(weight).T, golden.tensor(case["dequant"]))


def test_a_symmetric_file_with_other_zero_points_is_refused() -> None:
    case = VECTORS["gptq_asym"]
    config = replace(_gptq_config(case, "v2"), symmetric=True)
    with pytest.raises(FormatError, match=r"q_proj\.qzeros: .*not all zero points are 8"):
        _decode_gptq(case, "v2", config)


def test_a_group_that_does_not_exist_is_refused() -> None:
    case = VECTORS["gptq_sym"]
    parts = [golden.tensor(case[name]) for name in ("qweight", "qzeros_v2", "scales", "g_idx")]
    parts[3][5] = 2
    with pytest.raises(FormatError, match="g_idx: holds 2, expected groups from 0 to 1"):
        gptq.decode(*parts, _gptq_config(case, "v2"), "q_proj")


def test_permuted_columns_are_followed_even_without_desc_act() -> None:
    case = VECTORS["gptq_sym_desc_act"]
    weight = _decode_gptq(case, "v1", replace(_gptq_config(case, "v1"), desc_act=False))
    assert torch.equal(_dequantized(weight).T, golden.tensor(case["dequant"]))


def test_permuted_columns_are_never_written_without_desc_act() -> None:
    case = VECTORS["gptq_sym_desc_act"]
    config = _gptq_config(case, "v1")
    with pytest.raises(AssertionError, match="desc_act"):
        gptq.encode(_decode_gptq(case, "v1"), replace(config, desc_act=False))


def test_one_group_spans_the_row() -> None:
    codes = torch.arange(8 * 32, dtype=torch.uint8).view(8, 32) % 16
    scales, zeros = torch.full((8, 1), 0.5, dtype=torch.float16), torch.full((8, 1), 8, dtype=torch.uint8)
    weight = AffineWeight(packing.pack_codes(codes), scales, zeros, group_size=32)
    config = QuantizationConfig("gptq", None, True, "gptq")
    stored = gptq.encode(weight, config)
    assert stored["qzeros"].shape == (1, 1) and int(stored["qzeros"][0, 0]) == 0x77777777
    again = gptq.decode(**stored, config=config, where="q_proj")
    assert torch.equal(again.codes, weight.codes) and again.g_idx is None and again.group_size == 32
