"""Any JSON value in any known field: it is read, or refused in one sentence, and nothing else happens."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qlocal.errors import QLocalError
from qlocal.formats.base import TokenizerData
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.formats.quantization_config import parse_quantization_config
from tests import tiny

SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=9)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FILES = {
    "config.json": [
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "vocab_size", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "eos_token_id", "bos_token_id",
        "tie_word_embeddings", "quantization_config", "hidden_act", "auto_map", "trust_remote_code",
    ],
    "generation_config.json": ["eos_token_id", "temperature", "top_k", "top_p", "repetition_penalty"],
    "tokenizer_config.json": [
        "bos_token", "eos_token", "add_bos_token", "chat_template", "added_tokens_decoder", "tokenizer_class",
    ],
    "tokenizer.json": ["post_processor", "model", "added_tokens", "pre_tokenizer"],
}  # fmt: skip
FIELDS = [(file, field) for file, fields in FILES.items() for field in fields]
QUANTIZATION_FIELDS = [
    "quant_method", "bits", "w_bit", "group_size", "q_group_size", "sym", "zero_point", "version", "format",
    "checkpoint_format", "desc_act", "lm_head", "dynamic", "pack_dtype", "is_marlin_format",
]  # fmt: skip


@example(place=("config.json", "model_type"), value="\x1b[2J")
@example(place=("config.json", "quantization_config"), value={"quant_method": "awq", "bits": 4, "lm_head": "\x1b[2J"})
@settings(max_examples=250, deadline=None)
@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_in_a_folders_files(
    place: tuple[str, str], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile-fields"
    if not folder.exists():
        tiny.write_checkpoint(folder)
    file, field = place
    original = (folder / file).read_bytes()
    (folder / file).write_text(json.dumps(json.loads(original) | {field: value}))
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.tokenizer()
        checkpoint.generation_defaults()
    except QLocalError as error:
        assert error.message.isprintable() and len(error.message) < 2000
    finally:
        (folder / file).write_bytes(original)


@settings(max_examples=300, deadline=None)
@given(base=st.sampled_from(["awq", "gptq"]), field=st.sampled_from(QUANTIZATION_FIELDS), value=VALUES)
def test_any_value_in_a_quantization_config(base: str, field: str, value: Any) -> None:
    raw = {"quant_method": base, "bits": 4, "group_size": 128, "desc_act": False, "sym": True, field: value}
    try:
        config = parse_quantization_config(raw, "config.json")
    except QLocalError:
        return
    assert config is not None and config.method in ("awq", "gptq") and (config.group_size or 1) > 0


@settings(max_examples=300, deadline=None)
@given(
    path=st.sampled_from(
        [("model",), ("model", "vocab"), ("model", "merges"), ("model", "type"), ("model", "byte_fallback"),
         ("added_tokens",), ("pre_tokenizer",), ("normalizer",)]
    ),
    value=VALUES,
)  # fmt: skip
def test_any_value_in_a_tokenizer_that_becomes_a_vocabulary(path: tuple[str, ...], value: Any) -> None:
    raw = json.loads(tiny.tiny_tokenizer().to_str())
    target = raw
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    data = TokenizerData(tokenizer_json=json.dumps(raw).encode())
    try:
        vocabulary = vocabulary_for_gguf(data, tiny.tiny_config("qwen2"), ())
    except QLocalError:
        return
    assert len(vocabulary.tokens) == 320 == len(set(vocabulary.tokens))
