"""AWQ and GPTQ folders: every spelling of the settings, and every tensor of a whole folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlocal.errors import CheckpointError, ConfigError, FormatError, UnsupportedError
from qlocal.formats import awq, gptq, packing
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.quantization_config import (
    QuantizationConfig,
    awq_config_json,
    gptq_config_json,
    parse_quantization_config,
)
from qlocal.models import ARCHITECTURES
from qlocal.weights import AffineWeight
from tests import tiny

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


def _parsed(**fields: Any) -> QuantizationConfig:
    config = parse_quantization_config(fields, "config.json")
    assert config is not None
    return config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (AWQ, QuantizationConfig("awq", 32, False, "gemm")),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"},
         QuantizationConfig("awq", 64, False, "gemm")),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "sym": True},
         QuantizationConfig("awq", 32, True, "gemm")),
        ({"quant_method": "awq", "bits": 4, "group_size": -1, "zero_point": False},
         QuantizationConfig("awq", None, True, "gemm")),
        ({**AWQ, "modules_to_not_convert": ["gate"], "format": "gemm", "checkpoint_format": "gemm",
          "pack_dtype": "int32", "lm_head": False, "meta": {}, "desc_act": False},
         QuantizationConfig("awq", 32, False, "gemm")),
        (GPTQ, QuantizationConfig("gptq", 32, True, "gptq")),
        ({**GPTQ, "checkpoint_format": "gptq_v2", "sym": False}, QuantizationConfig("gptq", 32, False, "gptq_v2")),
        ({**GPTQ, "format": "gptq_v2"}, QuantizationConfig("gptq", 32, True, "gptq_v2")),
        ({**GPTQ, "desc_act": True, "group_size": -1}, QuantizationConfig("gptq", None, True, "gptq", True)),
        ({"bits": 4, "group_size": 128, "desc_act": False, "sym": True}, QuantizationConfig("gptq", 128, True, "gptq")),
        ({**AWQ, "lm_head": True},
         QuantizationConfig("awq", 32, False, "gemm", head=QuantizationConfig("awq", 32, False, "gemm"))),
        ({**GPTQ, "lm_head": True, "desc_act": True, "dynamic": {"+:^lm_head$": {"bits": 4, "group_size": 64,
          "sym": False, "desc_act": False, "mse": 2.4}}},
         QuantizationConfig("gptq", 32, True, "gptq", True, QuantizationConfig("gptq", 64, False, "gptq"))),
        ({**GPTQ, "dynamic": {}, "lm_head": None, "is_marlin_format": False},
         QuantizationConfig("gptq", 32, True, "gptq")),
    ],
)  # fmt: skip
def test_every_spelling_of_the_settings_is_read(fields: dict[str, Any], expected: QuantizationConfig) -> None:
    assert _parsed(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({}, "quant_method ''"),
        ({**AWQ, "bits": 8}, "bits is 8, expected 4"),
        ({**GPTQ, "bits": 3}, "bits is 3, expected 4"),
        ({**AWQ, "version": "gemv"}, "version 'gemv'"),
        ({**AWQ, "version": "gemv_fast"}, "version 'gemv_fast'"),
        ({**AWQ, "format": "marlin"}, "format 'marlin'"),
        ({**AWQ, "checkpoint_format": "llm-awq"}, "'llm-awq'"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin'"),
        ({**GPTQ, "checkpoint_format": "gptq_p"}, "'gptq_p'"),
        ({**GPTQ, "format": "bitblas"}, "'bitblas'"),
        ({**GPTQ, "is_marlin_format": True}, "'marlin'"),
        ({**GPTQ, "dynamic": {"-:lm_head": {}}}, "dynamic"),
        ({**GPTQ, "lm_head": 1}, "lm_head is 1"),
        ({**GPTQ, "lm_head": True, "dynamic": {"lm_head": {"bits": 8, "group_size": 32}}}, "lm_head has 8 bits"),
        ({**GPTQ, "lm_head": True, "dynamic": {"lm_head": 4}}, "no object for lm_head"),
        ({**GPTQ, "lm_head": True, "dynamic": ["lm_head"]}, "dynamic"),
        ({**GPTQ, "lm_head": True, "dynamic": {"lm_head": {}, ".*mlp.*": {"bits": 4}}}, "dynamic"),
        ({**GPTQ, "pack_dtype": "int8"}, "pack_dtype is 'int8'"),
        ({**GPTQ, "group_size": 0}, "group_size is 0"),
        ({**GPTQ, "group_size": -2}, "group_size is -2"),
        ({**GPTQ, "group_size": "128"}, "group_size is '128'"),
        ({**GPTQ, "sym": "yes"}, "sym is 'yes'"),
        ({**GPTQ, "bits": True}, "bits is True"),
    ],
)
def test_other_layouts_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_quantization_config(fields, "config.json")


def test_what_we_write_into_the_config_is_what_we_read() -> None:
    assert _parsed(**awq_config_json(128, None)) == QuantizationConfig("awq", 128, False, "gemm")
    for config in (
        QuantizationConfig("gptq", 128, True, "gptq"),
        QuantizationConfig("gptq", None, True, "gptq", desc_act=True),
        QuantizationConfig("gptq", 64, False, "gptq_v2"),
        QuantizationConfig("gptq", 64, True, "gptq", head=QuantizationConfig("gptq", 64, True, "gptq")),
    ):
        raw = gptq_config_json(config, "qlocal:0.1.0", damp_percent=0.05, act_group_aware=True)
        assert _parsed(**json.loads(json.dumps(raw))) == config


def test_asymmetric_version_1_is_never_written() -> None:
    config = QuantizationConfig("gptq", 128, False, "gptq")
    with pytest.raises(AssertionError, match="version 2 alone"):
        gptq_config_json(config, "qlocal:0.1.0", damp_percent=0.05, act_group_aware=True)


def _weight(shape: tuple[int, ...], seed: int, symmetric: bool, permuted: bool) -> AffineWeight:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    groups = columns // 32
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    zeros = torch.full((rows, groups), 8, dtype=torch.uint8)
    if not symmetric:
        zeros = torch.randint(0, 16, (rows, groups), generator=generator, dtype=torch.uint8)
    scales = torch.rand((rows, groups), generator=generator).to(torch.float16)
    order = torch.randperm(columns, generator=generator) if permuted else torch.arange(columns)
    g_idx = (torch.arange(columns) // 32)[order].to(torch.int32) if permuted else None
    return AffineWeight(packing.pack_codes(codes), scales, zeros, 32, g_idx)


def _write_folder(
    folder: Path, model_type: str, settings: dict[str, Any], config: QuantizationConfig
) -> dict[str, AffineWeight]:
    tiny.write_checkpoint(folder, model_type)
    architecture = ARCHITECTURES[model_type]
    tensors = load_file(folder / "model.safetensors")
    weights = {}
    for seed, spec in enumerate(architecture.tensors(tiny.tiny_config(model_type))):
        if not spec.is_quantized:
            tensors[spec.name] = tensors[spec.name].to(torch.float16)
            continue
        weight = _weight(spec.shape, seed, config.symmetric, config.desc_act)
        stored = awq.encode(weight) if config.method == "awq" else gptq.encode(weight, config)
        del tensors[spec.name]
        tensors |= {f"{spec.module}.{part}": tensor for part, tensor in stored.items()}
        weights[spec.name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(raw))
    return weights


SETTINGS = {
    "awq": AWQ,
    "gptq": GPTQ,
    "gptq_desc_act": {**GPTQ, "desc_act": True},
    "gptq_v2": {**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_a_quantized_folder_reads_back_every_weight(tmp_path: Path, model_type: str, settings: str) -> None:
    config = _parsed(**SETTINGS[settings])
    weights = _write_folder(tmp_path / "m", model_type, SETTINGS[settings], config)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.format == config.method
    for name, expected in weights.items():
        weight, stored = checkpoint.read(name), checkpoint.tensors[name]
        assert isinstance(weight, AffineWeight) and weight.shape == stored.shape
        assert torch.equal(weight.codes, expected.codes) and torch.equal(weight.scales, expected.scales)
        assert torch.equal(weight.zero_points, expected.zero_points)
        assert (weight.g_idx is None) == (expected.g_idx is None)
        assert expected.g_idx is None or torch.equal(weight.g_idx, expected.g_idx)
        rows, columns = stored.shape
        parts = rows * columns // 2 + columns // 32 * rows * 5 // 2 + (4 * columns if config.method == "gptq" else 0)
        assert (stored.storage, stored.num_bytes, stored.group_size) == (config.method, parts, 32)
        assert stored.has_g_idx == (config.method == "gptq")


def test_experts_of_gptqmodels_spelling_are_found(tmp_path: Path) -> None:
    weights = _write_folder(tmp_path / "m", "mixtral", GPTQ, _parsed(**GPTQ))
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    for short, long in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        tensors = {k.replace(f".{short}.", f".{long}."): v for k, v in tensors.items()}
    save_file({k.replace("block_sparse_moe", "mlp"): v for k, v in tensors.items()}, path)
    checkpoint = open_checkpoint(tmp_path / "m")
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    assert torch.equal(checkpoint.read(name).codes, weights[name].codes)


def test_a_linear_left_in_bf16_is_read_as_it_is(tmp_path: Path) -> None:
    _write_folder(tmp_path / "m", "qwen2", AWQ, _parsed(**AWQ))
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.0.mlp.up_proj"
    for part in awq.PARTS:
        del tensors[f"{module}.{part}"]
    tensors[f"{module}.weight"] = torch.ones(256, 128, dtype=torch.bfloat16)
    save_file(tensors, path)
    assert open_checkpoint(tmp_path / "m").tensors[f"{module}.weight"].storage == "bf16"


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_bias_that_the_table_does_not_know_may_only_be_zero(tmp_path: Path, value: float) -> None:
    _write_folder(tmp_path / "m", "llama", GPTQ, _parsed(**GPTQ))
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.full((256,), value, dtype=torch.float16)
    save_file(tensors, path)
    if value == 0.0:
        assert "model.layers.0.mlp.up_proj.bias" not in open_checkpoint(tmp_path / "m").tensors
    else:
        with pytest.raises(CheckpointError, match=r"up_proj\.bias is not part of a llama model"):
            open_checkpoint(tmp_path / "m")


def test_missing_and_misshapen_parts_are_told_at_once(tmp_path: Path) -> None:
    _write_folder(tmp_path / "m", "qwen2", GPTQ, _parsed(**GPTQ))
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.0.self_attn.q_proj"
    tensors[f"{module}.qweight"] = tensors[f"{module}.qweight"][:-1].clone()
    tensors[f"{module}.scales"] = tensors[f"{module}.scales"].float()
    del tensors["model.layers.0.self_attn.k_proj.qzeros"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m")
    text = " | ".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert f"{module}.qweight has shape (15, 128), expected (16, 128)" in text
    assert f"{module}.scales is F32, expected F16 or BF16" in text and "k_proj.qzeros is missing" in text


def test_a_group_that_does_not_divide_a_width_is_named(tmp_path: Path) -> None:
    _write_folder(tmp_path / "m", "qwen2", {**GPTQ, "group_size": 48}, _parsed(**GPTQ))
    with pytest.raises(CheckpointError, match="groups of 48"):
        open_checkpoint(tmp_path / "m")


def test_zero_points_that_contradict_the_label_are_told_when_read(tmp_path: Path) -> None:
    config = dataclasses.replace(_parsed(**GPTQ), symmetric=False, checkpoint_format="gptq_v2")
    _write_folder(tmp_path / "m", "qwen2", GPTQ, config)
    checkpoint = open_checkpoint(tmp_path / "m")
    with pytest.raises(FormatError, match=r"model\.safetensors: model\.layers\.0\.self_attn\.q_proj\.qzeros: .* sym"):
        checkpoint.read("model.layers.0.self_attn.q_proj.weight")


def test_a_folder_of_another_method_is_refused_before_its_tensors(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedError, match="'fp8'"):
        open_checkpoint(folder)
