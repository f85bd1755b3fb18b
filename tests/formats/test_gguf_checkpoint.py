"""GGUF checkpoints: written by us, read by us and by the gguf package; keys mean what they must."""

import dataclasses
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qlocal.errors import CheckpointError, ConfigError, FormatError, QLocalError, TokenizerError, UnsupportedError
from qlocal.formats import gguf_metadata
from qlocal.formats.base import TokenizerData
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_metadata import shortest_float32
from qlocal.formats.gguf_reader import GgufHeader, read_gguf
from qlocal.formats.gguf_rows import permute_rows, permuted_rows
from qlocal.formats.gguf_values import MetaValue, ValueType
from qlocal.formats.gguf_vocabulary import split_rule, vocabulary_for_gguf
from qlocal.formats.mapped_file import MappedFile
from qlocal.formats.sentencepiece_model import parse_sentencepiece
from qlocal.models.rope import inverse_frequencies
from qlocal.weights import BlockWeight, DenseWeight
from tests import tiny
from tests.formats.gguf_files import SAMPLING, write_tiny_gguf

MODEL_TYPES = ["qwen2", "llama", "mixtral"]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip


def _in_model_order(weight: Any) -> torch.Tensor:
    data = weight.data if isinstance(weight, DenseWeight) else weight.blocks
    return data if weight.row_map is None else data[weight.row_map]


@pytest.mark.parametrize("mix", ["f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_written_file_reads_back_every_weight(tmp_path: Path, model_type: str, mix: str) -> None:
    paths, weights = write_tiny_gguf(tmp_path / "m.gguf", model_type, mix)
    checkpoint = open_checkpoint(paths[0])
    assert checkpoint.format == "gguf" and checkpoint.architecture.model_type == model_type
    assert set(checkpoint.tensors) == set(weights)
    for name, expected in weights.items():
        weight = checkpoint.read(name)
        assert type(weight) is type(expected) and weight.shape == expected.shape
        assert torch.equal(_in_model_order(weight), _in_model_order(expected)), name
        assert checkpoint.tensors[name].num_bytes == _in_model_order(expected).nbytes
        if isinstance(weight, BlockWeight):
            assert checkpoint.tensors[name].storage == weight.ggml_type.name.lower()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_what_is_asked_from_the_disk_is_where_the_tensor_lies(
    tmp_path: Path, model_type: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "gguf":
        path = write_tiny_gguf(tmp_path / "m.gguf", model_type, "q8_0")[0][0]
    else:
        path = tiny.write_checkpoint(tmp_path / model_type, model_type)
    checkpoint = open_checkpoint(path)
    asked: list[bytes] = []
    monkeypatch.setattr(MappedFile, "will_read", lambda file, offset, count: asked.append(file.read(offset, count)))
    for name in checkpoint.tensors:
        checkpoint.will_read(name)
        weight = checkpoint.read(name)
        data = weight.data if isinstance(weight, DenseWeight) else weight.blocks
        assert asked == [data.contiguous().view(torch.uint8).numpy().tobytes()], name
        asked.clear()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_gguf_package_reads_what_we_write(tmp_path: Path, model_type: str) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", model_type)
    ours, reference = read_gguf(paths[0]), gguf.GGUFReader(paths[0])
    assert [t.name for t in reference.tensors] == list(ours.tensors)
    for tensor in reference.tensors:
        own = ours.tensors[tensor.name]
        assert tuple(int(d) for d in tensor.shape[::-1]) == own.shape and tensor.data_offset == own.offset
        assert tensor.tensor_type.name == own.ggml_type.name
        assert tensor.data.tobytes() == own.file.read(own.offset, own.num_bytes)
    for name, value in ours.metadata.items():
        found = reference.fields[name].contents()
        assert found == value.value or np.allclose(found, value.value), name
    assert paths[0].stat().st_size % 32 == 0


def test_tensors_lie_in_llama_quantizes_order(tmp_path: Path) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "qwen2", overrides={"num_hidden_layers": 11})
    names = list(read_gguf(paths[0]).tensors)
    assert names[:4] == ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.bias"]
    layers = [int(n.split(".")[1]) for n in names[3:]]
    assert layers == sorted(layers)


@pytest.mark.parametrize("heads", [1, 4, 9])
def test_rows_of_q_and_k_move_as_pairs(heads: int) -> None:
    half = 8
    data = torch.arange(heads * 2 * half * 3).view(-1, 3)
    stored = permute_rows(data, heads)
    for h in range(heads):
        for i in range(half):
            for b in range(2):
                assert torch.equal(stored[h * 2 * half + 2 * i + b], data[h * 2 * half + b * half + i])
    assert torch.equal(stored[permuted_rows(len(data), heads)], data)


def test_experts_are_views_of_one_stacked_tensor(tmp_path: Path) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "mixtral")
    checkpoint = open_checkpoint(paths[0])
    first, second = (checkpoint.read(f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight").blocks for e in (0, 1))
    assert second.data_ptr() - first.data_ptr() == first.nbytes


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_configuration_survives_the_round_trip(tmp_path: Path, model_type: str) -> None:
    overrides = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": model_type == "qwen2"}
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", model_type, overrides=overrides)
    assert open_checkpoint(paths[0]).config == tiny.tiny_config(model_type, overrides)


def test_a_given_head_dim_survives_the_round_trip(tmp_path: Path) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "llama", overrides={"head_dim": 64})
    assert open_checkpoint(paths[0]).config.head_dim == 64


def test_llama3_scaling_becomes_factors_with_the_same_frequencies(tmp_path: Path) -> None:
    overrides = {"rope_scaling": LLAMA3}
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "llama", overrides=overrides)
    config = open_checkpoint(paths[0]).config
    assert config.rope_scaling is not None and config.rope_scaling.kind == "factors"
    expected = inverse_frequencies(tiny.tiny_config("llama", overrides))
    assert np.allclose(inverse_frequencies(config), expected, rtol=1e-6)
    assert not np.allclose(expected, inverse_frequencies(tiny.tiny_config("llama")))


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.25},
    ],
)
def test_linear_and_yarn_scaling_survive_the_round_trip(tmp_path: Path, scaling: dict[str, Any]) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "qwen2", overrides={"rope_scaling": scaling})
    found = open_checkpoint(paths[0]).config.rope_scaling
    expected = tiny.tiny_config("qwen2", {"rope_scaling": scaling}).rope_scaling
    assert found is not None and expected is not None
    if expected.attention_factor is not None:
        assert found.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)
        found = dataclasses.replace(found, attention_factor=expected.attention_factor)
    assert found == expected


@pytest.mark.parametrize("value", [1e-6, 1e-5, 1e6, 5e5, 0.1, 1.25, 3.4e38, 123456.7])
def test_a_float32_reads_as_the_decimal_that_was_meant(value: float) -> None:
    (stored,) = struct.unpack("<f", struct.pack("<f", value))
    assert shortest_float32(stored) == pytest.approx(value, rel=0, abs=0)


def _with(header: GgufHeader, **keys: MetaValue | None) -> GgufHeader:
    metadata = {**header.metadata, **{k.replace("__", "."): v for k, v in keys.items()}}
    return dataclasses.replace(header, metadata={k: v for k, v in metadata.items() if v is not None})


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return read_gguf(write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", "qwen2")[0][0])


def _u32(value: int) -> MetaValue:
    return MetaValue(ValueType.UINT32, value)


HOSTILE_KEYS: dict[str, tuple[dict[str, MetaValue | None], str]] = {
    "no architecture": ({"general__architecture": None}, "general.architecture is missing"),
    "architecture a number": ({"general__architecture": _u32(3)}, "has the type UINT32"),
    "another architecture": ({"general__architecture": MetaValue(ValueType.STRING, "gemma")}, "'gemma'"),
    "no heads": ({"qwen2__attention__head_count": _u32(0)}, "num_attention_heads is 0"),
    "heads a float": ({"qwen2__attention__head_count": MetaValue(ValueType.FLOAT32, 4.0)}, "has the type FLOAT32"),
    "heads by layer": ({"qwen2__attention__head_count": MetaValue(ValueType.ARRAY, [4, 2], ValueType.UINT32)},
                       "differs by layer"),
    "no width": ({"qwen2__embedding_length": None}, "hidden_size is missing"),
    "2^31 layers": ({"qwen2__block_count": _u32(1 << 31)}, "num_hidden_layers is 2147483648"),
    "2^31 positions": ({"qwen2__context_length": _u32(1 << 31)}, "max_position_embeddings is"),
    "NaN epsilon": ({"qwen2__attention__layer_norm_rms_epsilon": MetaValue(ValueType.FLOAT32, float("nan"))}, "nan"),
    "no epsilon": ({"qwen2__attention__layer_norm_rms_epsilon": None}, "rms_norm_eps is missing"),
    "partial rotation": ({"qwen2__rope__dimension_count": _u32(16)}, "rope.dimension_count is 16"),
    "other values": ({"qwen2__attention__value_length": _u32(16)}, "value_length is 16"),
    "sliding window": ({"qwen2__attention__sliding_window": _u32(64)}, "sliding window of 64"),
    "unknown scaling": ({"qwen2__rope__scaling__type": MetaValue(ValueType.STRING, "longrope")}, "longrope"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_KEYS)
def test_a_hostile_key_is_refused_by_name(header: GgufHeader, case: str) -> None:
    keys, message = HOSTILE_KEYS[case]
    with pytest.raises((ConfigError, UnsupportedError), match=message):
        gguf_metadata.read_config(_with(header, **keys))


def test_heads_written_by_layer_are_read_when_equal(header: GgufHeader) -> None:
    heads = MetaValue(ValueType.ARRAY, [4, 4], ValueType.INT32)
    assert gguf_metadata.read_config(_with(header, qwen2__attention__head_count=heads))[1].num_attention_heads == 4


@pytest.mark.parametrize("name", ["tokens", "token_type", "scores", "merges"])
@pytest.mark.parametrize("element", [e for e in ValueType if e is not ValueType.ARRAY])
def test_a_vocabulary_array_of_the_wrong_type_is_refused(header: GgufHeader, name: str, element: ValueType) -> None:
    right = {"tokens": ValueType.STRING, "merges": ValueType.STRING, "token_type": ValueType.INT32}
    if element is right.get(name, ValueType.FLOAT32):
        return
    value = MetaValue(ValueType.ARRAY, [0] * 320, element)
    with pytest.raises(TokenizerError, match=f"tokenizer.ggml.{name} is not an array"):
        gguf_metadata.read_tokenizer(_with(header, **{f"tokenizer__ggml__{name}": value}))


def test_a_vocabulary_array_of_the_wrong_length_is_refused(header: GgufHeader) -> None:
    value = MetaValue(ValueType.ARRAY, [1] * 319, ValueType.INT32)
    with pytest.raises(TokenizerError, match="has 319 entries for 320 tokens"):
        gguf_metadata.read_tokenizer(_with(header, tokenizer__ggml__token_type=value))


def test_all_tensors_that_do_not_match_are_told_at_once(header: GgufHeader) -> None:
    tensors = dict(header.tensors)
    del tensors["blk.1.attn_q.bias"]
    tensors["blk.7.attn_q.bias"] = tensors["blk.0.attn_q.bias"]
    tensors["blk.0.ffn_up.weight"] = dataclasses.replace(tensors["blk.0.ffn_up.weight"], shape=(128, 256))
    changed = dataclasses.replace(header, tensors=tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlocal.formats.gguf_checkpoint.read_gguf", lambda path: changed)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(header.path)
    text = " | ".join(caught.value.problems)
    assert len(caught.value.problems) == 3 and "blk.1.attn_q.bias is missing" in text
    assert "blk.7.attn_q.bias is not part" in text and "shape (128, 256), expected (256, 128)" in text


def test_rope_factors_must_be_positive_and_of_the_right_length(tmp_path: Path) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "llama", overrides={"rope_scaling": LLAMA3})
    tensor = read_gguf(paths[0]).tensors["rope_freqs.weight"]
    content = bytearray(paths[0].read_bytes())
    content[tensor.offset : tensor.offset + 4] = struct.pack("<f", float("nan"))
    paths[0].write_bytes(content)
    with pytest.raises(FormatError, match="a divisor that is not positive"):
        open_checkpoint(paths[0])


def test_the_tokenizer_survives_the_round_trip(tmp_path: Path) -> None:
    paths, _ = write_tiny_gguf(tmp_path / "m.gguf", "qwen2")
    checkpoint = open_checkpoint(paths[0])
    data = checkpoint.tokenizer()
    reference = tiny.tiny_tokenizer()
    vocabulary = data.gguf_vocabulary
    assert vocabulary is not None and (vocabulary.model, vocabulary.pre) == ("gpt2", "gpt-2")
    assert data.chat_template == tiny.CHAT_TEMPLATE and data.eos_token == "<|im_end|>" and data.add_bos is False
    assert len(vocabulary.tokens) == 320 == len(set(vocabulary.tokens))
    for text, token_id in reference.get_vocab().items():
        assert vocabulary.tokens[token_id] == text
        assert vocabulary.token_types[token_id] == (3 if text in tiny.SPECIAL_TOKENS else 1)
    assert vocabulary.token_types[-1] == 5 and vocabulary.tokens[-1] == "[PAD319]"
    stop_ids = tuple(reference.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>"))
    assert checkpoint.generation_defaults() == dataclasses.replace(SAMPLING, stop_ids=stop_ids)


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str, **fields: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **fields}


@pytest.mark.parametrize(
    ("pre_tokenizer", "name"),
    [
        (_sequence(_split(QWEN), _byte_level(False)), "qwen2"),
        (_sequence(_split(LLAMA), _byte_level(False)), "llama-bpe"),
        (_sequence({"type": "Digits", "individual_digits": True}, _byte_level(True)), "smollm"),
        (_byte_level(True), "gpt-2"),
    ],
)
def test_a_known_split_has_its_name(pre_tokenizer: dict[str, Any], name: str) -> None:
    assert split_rule({"pre_tokenizer": pre_tokenizer, "normalizer": None}) == name


@pytest.mark.parametrize(
    "raw",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": _sequence(_split(QWEN + "|x"), _byte_level(False))},
        {"pre_tokenizer": _sequence(_split(QWEN, behavior="Removed"), _byte_level(False))},
        {"pre_tokenizer": _sequence(_split(QWEN, invert=True), _byte_level(False))},
        {"pre_tokenizer": _sequence(_split(QWEN), _byte_level(True))},
        {"pre_tokenizer": {**_byte_level(True), "add_prefix_space": True}},
        {"pre_tokenizer": _byte_level(True), "normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": 3},
        {"pre_tokenizer": _sequence()},
    ],
)
def test_an_unknown_split_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="has no name in GGUF"):
        split_rule(raw)


@pytest.mark.parametrize(("name", "rows"), [("mixtral-8x7b", 32_000), ("mixtral-8x22b", 32_768)])
def test_sentencepiece_pieces_are_the_librarys(shared_data: Path, name: str, rows: int) -> None:
    import sentencepiece

    content = (shared_data / "tokenizers" / f"{name}.tokenizer.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = parse_sentencepiece(content)
    assert [p.text for p in model.pieces] == [library.id_to_piece(i) for i in range(rows)]
    assert [p.score for p in model.pieces] == [library.get_score(i) for i in range(rows)]
    for i in range(rows):
        kind = model.pieces[i].kind
        assert (kind == 3, kind == 2, kind == 6) == (library.is_control(i), library.is_unknown(i), library.is_byte(i))


def test_a_sentencepiece_vocabulary_fills_every_row(shared_data: Path) -> None:
    content = (shared_data / "tokenizers" / "mixtral-8x7b.tokenizer.model").read_bytes()
    config = dataclasses.replace(tiny.tiny_config("mixtral"), vocab_size=32_004, bos_token_id=1, eos_token_ids=(2,))
    data = TokenizerData(
        sentencepiece_model=content, eos_token="</s>", added_tokens={0: ("<unk>", True), 32_000: ("<|im_end|>", True)}
    )
    vocabulary = vocabulary_for_gguf(data, config, (2,))
    assert vocabulary.scores is not None and (vocabulary.model, vocabulary.pre) == ("llama", "default")
    assert vocabulary.tokens[32_000:] == ["<|im_end|>", "[PAD32001]", "[PAD32002]", "[PAD32003]"]
    assert vocabulary.token_types[:4] == [2, 3, 3, 6] and vocabulary.token_types[32_000:] == [3, 5, 5, 5]
    assert vocabulary.scores[32_000:] == [-1000.0, -10_000.0, -10_000.0, -10_000.0]
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.add_space_prefix) == (1, 2, True)


def test_a_vocabulary_only_file_gives_its_tokenizer(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    data = gguf_metadata.read_tokenizer(read_gguf(path))
    assert data.gguf_vocabulary is not None and data.gguf_vocabulary.model == "llama"
    assert len(data.gguf_vocabulary.tokens) == 32_000 and data.bos_token == "<s>" and data.add_bos


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x0a\x05ab", b"\x0a\xff\xff\xff\xff\xff\xff", b"\x0b\x01"])
def test_bytes_that_are_no_sentencepiece_model_are_refused(content: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        parse_sentencepiece(content)


@pytest.mark.parametrize("merge", [3, "ab", "a b c", ["a"], ["a", 3]])
def test_a_malformed_merge_is_refused(tmp_path: Path, merge: Any) -> None:
    import json

    raw = json.loads(tiny.tiny_tokenizer().to_str())
    raw["model"]["merges"] = [merge]
    data = TokenizerData(tokenizer_json=json.dumps(raw).encode())
    with pytest.raises(TokenizerError, match="is no pair"):
        vocabulary_for_gguf(data, tiny.tiny_config("qwen2"), ())


def test_a_vocabulary_larger_than_the_embedding_is_refused() -> None:
    data = TokenizerData(tokenizer_json=tiny.tiny_tokenizer().to_str().encode())
    config = dataclasses.replace(tiny.tiny_config("qwen2"), vocab_size=290)
    with pytest.raises(QLocalError, match="the embedding has 290 rows"):
        vocabulary_for_gguf(data, config, ())
