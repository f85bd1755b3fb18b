from __future__ import annotations

from math import prod

import pytest

from qlocal.errors import ConfigError, UnsupportedError
from qlocal.models import ARCHITECTURES, by_gguf_arch, by_model_type
from qlocal.models.base import ModelConfig, Role
from qlocal.models.config_fields import parse_config
from tests import tiny

# Published geometry and the parameter counts that follow from it.
GEOMETRIES = {
    "Qwen2.5-0.5B": ("qwen2", (896, 4864, 24, 14, 2, 151936, True), 494_032_768),
    "Qwen2.5-7B": ("qwen2", (3584, 18944, 28, 28, 4, 152064, False), 7_615_616_512),
    "Qwen2.5-72B": ("qwen2", (8192, 29568, 80, 64, 8, 152064, False), 72_706_203_648),
    "Llama-3-8B": ("llama", (4096, 14336, 32, 32, 8, 128256, False), 8_030_261_248),
    "Llama-3-70B": ("llama", (8192, 28672, 80, 64, 8, 128256, False), 70_553_706_496),
    "Mixtral-8x7B": ("mixtral", (4096, 14336, 32, 32, 8, 32000, False), 46_702_792_704),
    "Mixtral-8x22B": ("mixtral", (6144, 16384, 56, 48, 8, 32768, False), 140_630_071_296),
}


def geometry(name: str) -> ModelConfig:
    model_type, (hidden, ffn, layers, heads, kv_heads, vocab, tied), _ = GEOMETRIES[name]
    overrides = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }
    if model_type == "mixtral":
        overrides["num_local_experts"] = 8
    return tiny.tiny_config(model_type, overrides)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_table_has_exactly_the_published_number_of_parameters(name: str) -> None:
    model_type, _, parameters = GEOMETRIES[name]
    specs = list(ARCHITECTURES[model_type].tensors(geometry(name)))
    assert sum(prod(spec.shape) for spec in specs) == parameters
    assert len({spec.name for spec in specs}) == len(specs)


def test_an_unknown_architecture_is_named_with_the_supported_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"config\.json: model_type 'gpt_neox'.*llama, mixtral, qwen2"):
        by_model_type("gpt_neox", where="config.json")


def test_gguf_calls_mixtral_llama_with_experts() -> None:
    assert by_gguf_arch("llama", 0, where="x").model_type == "llama"
    assert by_gguf_arch("llama", 8, where="x").model_type == "mixtral"
    assert by_gguf_arch("qwen2", 0, where="x").model_type == "qwen2"
    with pytest.raises(UnsupportedError, match="phi3"):
        by_gguf_arch("phi3", 0, where="x")


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps", "intermediate_size"]
)
def test_a_missing_field_is_named(field: str) -> None:
    raw = tiny.raw_config("qwen2")
    del raw[field]
    with pytest.raises(ConfigError, match=rf"config\.json: {field} is missing"):
        parse_config(raw, ARCHITECTURES["qwen2"], "config.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", "128"),
        ("num_attention_heads", True),
        ("num_key_value_heads", 3),
        ("vocab_size", 1 << 40),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("eos_token_id", [5, 99_999]),
        ("head_dim", 33),
        ("tie_word_embeddings", "yes"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "factors"}),
        ("rope_scaling", {"rope_type": "factors", "factors": [1.0]}),
        ("use_sliding_window", True),
        ("hidden_act", "gelu"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    raw = tiny.raw_config("qwen2") | {field: value}
    with pytest.raises(ConfigError, match=field):
        parse_config(raw, ARCHITECTURES["qwen2"], "config.json")


def test_a_width_of_heads_that_follows_from_others_has_the_same_limit() -> None:
    raw = tiny.raw_config("qwen2") | {"hidden_size": 1 << 20, "num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.raises(ConfigError, match="head_dim is 524288, expected an even number up to 1024"):
        parse_config(raw, ARCHITECTURES["qwen2"], "config.json")


def test_qwens_unused_sliding_window_is_ignored() -> None:
    raw = tiny.raw_config("qwen2") | {"sliding_window": 32768, "use_sliding_window": False}
    assert parse_config(raw, ARCHITECTURES["qwen2"], "config.json").num_hidden_layers == 2


def test_new_configs_spell_the_rope_settings_as_rope_parameters() -> None:
    raw = tiny.raw_config("llama")
    del raw["rope_theta"]
    raw["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = parse_config(raw, ARCHITECTURES["llama"], "config.json")
    assert config.rope_theta == 5e5
    assert config.rope_scaling is not None and config.rope_scaling.kind == "llama3"


def test_every_awq_fold_names_tensors_of_the_table() -> None:
    for model_type, architecture in ARCHITECTURES.items():
        config = tiny.tiny_config(model_type)
        names = {spec.name for spec in architecture.tensors(config)}
        folds = list(architecture.scale_folds(config, 0))
        assert all({fold.producer, *fold.consumers} <= names for fold in folds)


def test_mixtral_folds_the_router_with_its_experts() -> None:
    config = tiny.tiny_config("mixtral")
    specs = {spec.name: spec for spec in ARCHITECTURES["mixtral"].tensors(config)}
    fold = next(f for f in ARCHITECTURES["mixtral"].scale_folds(config, 0) if "post_attention" in f.producer)
    assert Role.ROUTER in {specs[name].role for name in fold.consumers}
    assert len(fold.consumers) == 1 + 2 * config.num_experts
