"""Type rules against llama.cpp's dry runs: every role of nine models, and the total to the byte."""

from typing import Any

import pytest

from qlocal.errors import UsageError
from qlocal.formats.type_mix import MIXES, choose_types, gguf_entries
from qlocal.ggml_types import GgmlType
from qlocal.models import ARCHITECTURES
from qlocal.models.base import ModelConfig, RopeScaling
from tests import tiny
from tests.formats import golden

VECTORS = golden.load("llama_quant_mix.json")
CASES = [(model, ftype) for model, case in VECTORS.items() for ftype in case["ftypes"] if not ftype.startswith("IQ")]


def _config(model: str, geometry: dict[str, Any]) -> ModelConfig:
    model_type = "mixtral" if geometry["n_expert"] else geometry["arch"]
    return ModelConfig(
        model_type=model_type,
        hidden_size=geometry["n_embd"],
        intermediate_size=geometry["n_ff"],
        num_hidden_layers=geometry["n_layer"],
        num_attention_heads=geometry["n_head"],
        num_key_value_heads=geometry["n_head_kv"],
        head_dim=geometry["n_embd"] // geometry["n_head"],
        vocab_size=geometry["n_vocab"],
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        rope_scaling=RopeScaling("llama3", 8.0, 8192) if model.startswith("llama-3.1") else None,
        tie_word_embeddings=geometry["tied"],
        num_experts=geometry["n_expert"],
        num_experts_per_tok=2 if geometry["n_expert"] else 0,
    )


def _layers(ranges: str) -> list[int]:
    bounds = [part.split("-") for part in ranges.split(",")]
    return [i for b in bounds for i in range(int(b[0]), int(b[-1]) + 1)]


def _expected(roles: dict[str, Any], num_layers: int) -> dict[str, str]:
    """Return type names by tensor name from the vector's roles."""
    names: dict[str, str] = {}
    for role, types in roles.items():
        if role in ("token_embd.weight", "output.weight"):
            names[role] = types
            continue
        by_range = types if isinstance(types, dict) else {types: f"0-{num_layers - 1}"}
        names |= {f"blk.{i}.{role}": t for t, ranges in by_range.items() for i in _layers(ranges)}
    return names


@pytest.mark.parametrize(("model", "ftype"), CASES)
def test_types_and_bytes_are_llama_quantizes(model: str, ftype: str) -> None:
    case = VECTORS[model]
    config = _config(model, case["config"])
    architecture = ARCHITECTURES[config.model_type]
    mix, _, with_matrix = ftype.lower().partition("+")
    types = choose_types(architecture, config, mix, has_imatrix=bool(with_matrix))
    expected = _expected(case["ftypes"][ftype]["roles"], config.num_hidden_layers)
    assert {name: types[name].name for name in expected} == expected
    rest = {t for n, t in types.items() if n not in expected}
    assert rest == {GgmlType.F32}
    assert sum(e.num_bytes for e in gguf_entries(architecture, config, types)) == case["ftypes"][ftype]["tensor_bytes"]


def test_rope_factors_are_part_of_a_llama3_file() -> None:
    config = ModelConfig(**{**vars(tiny.tiny_config("llama")), "rope_scaling": RopeScaling("llama3", 8.0, 8192)})
    entries = gguf_entries(ARCHITECTURES["llama"], config, choose_types(ARCHITECTURES["llama"], config, "q4_0", False))
    rope = next(e for e in entries if e.name == "rope_freqs.weight")
    assert rope.shape == (16,) and rope.ggml_type is GgmlType.F32


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mixtral"])
def test_every_mix_has_a_type_for_every_tensor_of_a_narrow_model(mix: str, model_type: str) -> None:
    config = tiny.tiny_config(model_type)
    types = choose_types(ARCHITECTURES[model_type], config, mix, has_imatrix=True)
    entries = gguf_entries(ARCHITECTURES[model_type], config, types)
    assert all(e.num_bytes > 0 for e in entries) and len(entries) == len(types)


def test_an_unknown_mix_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"type 'q3_k_m' is unknown.*q4_k_m"):
        choose_types(ARCHITECTURES["qwen2"], tiny.tiny_config("qwen2"), "q3_k_m", False)
