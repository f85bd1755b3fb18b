"""Every field of a configuration may reach its limits and not pass them; refusals quote what is long in part."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from qlocal.errors import ConfigError, FormatError, QLocalError, UnsupportedError
from qlocal.formats import hf_folder, mapped_file
from qlocal.formats.mapped_file import MappedFile, copy_file, read_small_file
from qlocal.formats.quantization_config import (
    QuantizationConfig,
    awq_config_json,
    gptq_config_json,
    parse_quantization_config,
)
from qlocal.models import ARCHITECTURES
from qlocal.models.base import ModelConfig
from qlocal.models.config_fields import parse_config
from tests import tiny

LONG = "k" * 70


def config_of(model_type: str, **fields: Any) -> ModelConfig:
    return parse_config(tiny.raw_config(model_type) | fields, ARCHITECTURES[model_type], "config.json")


LIMITS: dict[str, tuple[str, float, float]] = {
    "hidden_size": ("qwen2", 1, 1 << 20),
    "intermediate_size": ("qwen2", 1, 1 << 20),
    "num_hidden_layers": ("qwen2", 1, 1024),
    "num_attention_heads": ("qwen2", 1, 1024),
    "head_dim": ("qwen2", 2, 1024),
    "vocab_size": ("qwen2", 2, 1 << 22),
    "max_position_embeddings": ("qwen2", 1, 1 << 24),
    "num_local_experts": ("mixtral", 1, 256),
    "rms_norm_eps": ("qwen2", 1e-12, 1.0),
    "rope_theta": ("qwen2", 1.0, 1e12),
}
BESIDE = {"num_key_value_heads": 1, "head_dim": 2, "eos_token_id": None, "bos_token_id": None, "num_experts_per_tok": 1}


@pytest.mark.parametrize("name", LIMITS)
def test_a_field_of_the_geometry_may_reach_its_limits_and_not_pass_them(name: str) -> None:
    model_type, low, high = LIMITS[name]
    for value in (low, high):
        config_of(model_type, **(BESIDE | {name: value}))
    steps = (low - 1, high + 1) if isinstance(low, int) else (low / 2, high * 2)
    for value in steps:
        with pytest.raises(ConfigError, match=f"config.json: {name} is .*, expected a .*number from"):
            config_of(model_type, **(BESIDE | {name: value}))


def test_fields_that_are_missing_take_what_the_page_says() -> None:
    plain = config_of("qwen2", num_key_value_heads=None, head_dim=None, num_attention_heads=4, hidden_size=64)
    assert (plain.num_key_value_heads, plain.head_dim, plain.num_experts, plain.num_experts_per_tok) == (4, 16, 0, 0)
    experts = config_of("mixtral", num_local_experts=None, num_experts_per_tok=None)
    assert (experts.num_experts, experts.num_experts_per_tok) == (8, 2)
    assert config_of("mixtral", num_local_experts=3, num_experts_per_tok=3).num_experts_per_tok == 3
    for wrong in (0, 4):
        with pytest.raises(ConfigError, match=f"num_experts_per_tok is {wrong}, expected a whole number from 1 to 3"):
            config_of("mixtral", num_local_experts=3, num_experts_per_tok=wrong)
    wide = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": None}
    assert config_of("qwen2", hidden_size=1024, **wide).head_dim == 1024
    for size in (1026, 511):
        with pytest.raises(ConfigError, match=f"head_dim is {size}, expected an even number up to 1024"):
            config_of("qwen2", hidden_size=size, **wide)


SCALING: dict[str, tuple[dict[str, Any], float, float]] = {
    "linear factor": ({"rope_type": "linear"}, 1.0, 1024.0),
    "yarn factor": ({"rope_type": "yarn"}, 1.0, 1024.0),
    "yarn beta_fast": ({"rope_type": "yarn", "factor": 2.0}, 1e-3, 1e6),
    "yarn beta_slow": ({"rope_type": "yarn", "factor": 2.0}, 1e-3, 1e6),
    "yarn attention_factor": ({"rope_type": "yarn", "factor": 2.0}, 1e-3, 1e3),
    "llama3 low_freq_factor": ({"rope_type": "llama3", "factor": 2.0, "high_freq_factor": 4.0}, 1e-3, 1024.0),
    "llama3 high_freq_factor": ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, 1e-3, 1024.0),
    "yarn original_max_position_embeddings": ({"rope_type": "yarn", "factor": 2.0}, 1, 1 << 24),
}


@pytest.mark.parametrize("case", SCALING)
def test_scaling_may_reach_its_limits_and_not_pass_them(case: str) -> None:
    values, low, high = SCALING[case]
    name = case.split()[1]
    for value in (low, high):
        scaling = config_of("qwen2", rope_scaling=values | {name: value}).rope_scaling
        assert scaling is not None and getattr(scaling, name) == value
    for value in (low - 1 if isinstance(low, int) else low / 2, high + 1 if isinstance(low, int) else high * 2):
        with pytest.raises(ConfigError, match=f"rope_scaling: {name} is"):
            config_of("qwen2", rope_scaling=values | {name: value})


def test_token_ids_may_be_those_of_the_vocabulary() -> None:
    assert config_of("qwen2", vocab_size=300, eos_token_id=[0, 299], bos_token_id=0).eos_token_ids == (0, 299)
    for wrong in (-1, 300):
        with pytest.raises(ConfigError, match=f"eos_token_id holds {wrong}, expected token ids from 0 to 299"):
            config_of("qwen2", vocab_size=300, bos_token_id=0, eos_token_id=[0, wrong])


def test_scaling_that_says_little_takes_what_the_paper_says() -> None:
    scaling = config_of("qwen2", rope_scaling={"type": "yarn", "factor": 4.0}, max_position_embeddings=512).rope_scaling
    assert scaling is not None
    found = (scaling.original_max_position_embeddings, scaling.beta_fast, scaling.beta_slow, scaling.attention_factor)
    assert found == (512, 32.0, 1.0, None)


@pytest.mark.parametrize(("length", "shown"), [(58, "'" + "k" * 58 + "'"), (59, "'" + "k" * 56 + "...")])
def test_values_are_quoted_in_part_beyond_60_characters(length: int, shown: str) -> None:
    with pytest.raises(ConfigError, match=f"hidden_size is {shown.replace('.', '[.]')}, expected"):
        config_of("qwen2", hidden_size="k" * length)


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4}
AWQ: dict[str, Any] = {"quant_method": "awq"}


def test_settings_that_are_missing_take_what_the_peers_take() -> None:
    assert parse_quantization_config(GPTQ, "c") == QuantizationConfig("gptq", 128, True, "gptq", False)
    assert parse_quantization_config({"desc_act": True}, "c") == QuantizationConfig("gptq", 128, True, "gptq", True)
    assert parse_quantization_config(AWQ, "c") == QuantizationConfig("awq", 128, False, "gemm")
    assert parse_quantization_config(AWQ | {"sym": True}, "c") == QuantizationConfig("awq", 128, True, "gemm")
    head = parse_quantization_config(GPTQ | {"group_size": -1, "lm_head": True}, "c")
    assert head is not None and head.head is not None and head.head.group_size is None
    own = parse_quantization_config(
        GPTQ | {"lm_head": True, "dynamic": {"lm_head": {"group_size": 32, "sym": False, "desc_act": True}}}, "c"
    )
    assert own is not None and own.head is not None
    assert (own.head.group_size, own.head.symmetric, own.head.desc_act) == (32, False, True)


def test_group_sizes_and_bits_have_limits() -> None:
    for size, found in ((-1, None), (1, 1), (1 << 20, 1 << 20)):
        settings = parse_quantization_config(GPTQ | {"group_size": size}, "c")
        assert settings is not None and settings.group_size == found
    for size in (-2, 0, (1 << 20) + 1):
        with pytest.raises(ConfigError, match=f"group_size is {size}, expected"):
            parse_quantization_config(GPTQ | {"group_size": size}, "c")
    for bits in (1, 16):
        with pytest.raises(UnsupportedError, match=f"bits is {bits}, expected 4"):
            parse_quantization_config(GPTQ | {"bits": bits}, "c")
        with pytest.raises(UnsupportedError, match=f"lm_head has {bits} bits, expected 4"):
            parse_quantization_config(GPTQ | {"lm_head": True, "dynamic": {"lm_head": {"bits": bits}}}, "c")
    for bits in (0, 17):
        with pytest.raises(ConfigError, match=f"bits is {bits}, expected a whole number from 1 to 16"):
            parse_quantization_config(GPTQ | {"bits": bits}, "c")


@pytest.mark.parametrize(
    ("fields", "quoted"),
    [
        ({"quant_method": LONG}, "quant_method"),
        (GPTQ | {"pack_dtype": LONG}, "pack_dtype is"),
        (GPTQ | {"checkpoint_format": LONG}, "checkpoint_format"),
        (AWQ | {"version": LONG}, "version"),
    ],
)
def test_settings_are_quoted_in_part(fields: dict[str, Any], quoted: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{quoted} '{LONG[:40]}'"):
        parse_quantization_config(fields, "c")


def test_what_we_write_is_what_the_peers_read() -> None:
    awq = {"quant_method": "awq", "zero_point": True, "group_size": 64, "bits": 4, "version": "gemm"}
    assert awq_config_json(64, ["lm_head"]) == awq | {"modules_to_not_convert": ["lm_head"]}
    assert awq_config_json(64, None, quantizes_head=True)["lm_head"] is True
    config = QuantizationConfig("gptq", None, False, "gptq_v2", True)
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": True, "sym": False, "lm_head": False}
    gptq |= {"checkpoint_format": "gptq_v2", "pack_dtype": "int32", "true_sequential": True, "damp_percent": 0.01}
    gptq |= {"meta": {"quantizer": ["qlocal:1"], "act_group_aware": False}}
    assert gptq_config_json(config, "qlocal:1", damp_percent=0.01, act_group_aware=False) == gptq


def test_a_file_is_read_to_its_end_and_not_beyond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(10)))
    assert read_small_file(path, 10) == bytes(range(10)) and MappedFile(path).read(4, 3) == b"\4\5\6"
    with pytest.raises(FormatError, match="x: has 10 bytes, at most 9"):
        read_small_file(path, 9)
    with pytest.raises(FormatError, match="x: ends at byte 10, expected 12 bytes"):
        MappedFile(path).read(8, 4)
    whole = MappedFile(path)
    assert whole.tensor(torch.int32, (2,), 1).tolist() == [0x04030201, 0x08070605]
    assert whole.tensor(torch.int16, (2,), 4).tolist() == [0x0504, 0x0706]
    assert whole.tensor(torch.int16, (1,), 4).tolist() == [0x0504] and whole.tensor(torch.int16, (0, 3), 4).numel() == 0
    views = [whole.tensor(torch.int16, (2,), offset).data_ptr() for offset in (4, 4, 6)]
    assert views == [views[0], views[0], views[0] + 2], "nothing is copied"
    monkeypatch.setattr(mapped_file, "_COPY_BYTES", 4)
    copy_file(path, tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == path.read_bytes()


def test_why_a_file_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    for name, follows, said in (("missing", False, os.strerror(errno.ENOENT)), ("round", True, "it is a link")):
        with pytest.raises(FormatError, match=f"{name}: cannot be opened: {said}"):
            MappedFile(tmp_path / name, follow_links=follows)
    with pytest.raises(FormatError, match="cannot be opened: embedded null"):
        MappedFile(tmp_path / "a\0b", follow_links=True)


def test_an_index_may_name_the_most_files_and_is_quoted_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_folder, "MAX_SHARDS", 2)
    index = tmp_path / hf_folder.INDEX_NAME

    def read(names: dict[str, str]) -> dict[str, str]:
        index.write_text(json.dumps({"weight_map": names}))
        return dict(hf_folder._weight_map(tmp_path))

    two = {"a": "1.safetensors", "b": "2.safetensors"}
    assert read(two) == two
    with pytest.raises(QLocalError, match="names 3 files, at most 2"):
        read(two | {"c": "3.safetensors"})
    with pytest.raises(QLocalError, match=f"puts '{'t' * 120}' into '{'/' * 120}', expected"):
        read({"t" * 130: "/" * 130})


def test_there_may_be_65536_added_tokens() -> None:
    tokens = {str(number): {"content": "a"} for number in range(65_536)}
    assert len(hf_folder._added_tokens({"added_tokens_decoder": tokens})) == 65_536
    with pytest.raises(ConfigError, match="at most 65536 tokens"):
        hf_folder._added_tokens({"added_tokens_decoder": tokens | {"65536": {"content": "a"}}})
    assert hf_folder._added_tokens({"added_tokens_decoder": {"9999999": {"content": "a", "special": True}}}) == {
        9_999_999: ("a", True)
    }
    with pytest.raises(ConfigError, match="holds '10000000' without a text"):
        hf_folder._added_tokens({"added_tokens_decoder": {"10000000": {"content": "a"}}})
