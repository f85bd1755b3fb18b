"""The refusals of the readers that belong to no table: each is reached, named, and leaves the next file readable."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qlocal.errors import CheckpointError, ConfigError, FormatError, QLocalError, TokenizerError
from qlocal.formats import gguf_metadata, hf_folder, mapped_file
from qlocal.formats.base import TokenizerData
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_reader import MAX_HEADER_BYTES, GgufHeader, read_gguf
from qlocal.formats.gguf_values import MetaValue, ValueType
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.formats.imatrix_file import MAX_FILE_BYTES, read_imatrix
from qlocal.formats.mapped_file import copy_file
from qlocal.formats.quantization_config import parse_quantization_config
from qlocal.formats.safetensors_file import read_header
from qlocal.formats.sentencepiece_model import parse_sentencepiece
from qlocal.ggml_types import GgmlType
from qlocal.guard import sentencepiece_proto
from tests import tiny
from tests.formats import gguf_files
from tests.formats.gguf_files import file_bytes, float_bytes, info, key, string
from tests.formats.test_gguf_checkpoint import LLAMA3

TEXT, ARRAY = 8, 9
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "m")


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_header_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    keys = [key(f"k{i}", TEXT, string("y" * (9 << 20))) for i in range(MAX_HEADER_BYTES // (9 << 20) + 1)]
    (tmp_path / "x.gguf").write_bytes(file_bytes(keys))
    with pytest.raises(FormatError, match=f"the header has more than {MAX_HEADER_BYTES} bytes"):
        read_gguf(tmp_path / "x.gguf")


def test_a_split_count_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(file_bytes([key("split.count", TEXT, string("2"))]))
    with pytest.raises(FormatError, match=r"split\.count is no whole number"):
        read_gguf(tmp_path / "x.gguf")


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    for number in range(2):
        keys = [key("split.no", 2, struct.pack("<H", number)), key("split.count", 2, struct.pack("<H", 2))]
        content = file_bytes(keys, [info("a", [8])], float_bytes(8) + bytes(number))
        (tmp_path / f"x-0000{number + 1}-of-00002.gguf").write_bytes(content)
    with pytest.raises(FormatError, match="tensor 'a' lies in an earlier part too"):
        read_gguf(tmp_path / "x-00001-of-00002.gguf")


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    return read_gguf(gguf_files.write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", "qwen2")[0][0])


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> GgufHeader:
    """A header with rope_freqs.weight."""
    path = tmp_path_factory.mktemp("scaled") / "m.gguf"
    return read_gguf(gguf_files.write_tiny_gguf(path, "llama", overrides={"rope_scaling": LLAMA3})[0][0])


def with_keys(header: GgufHeader, values: dict[str, MetaValue | None]) -> GgufHeader:
    metadata = {name: value for name, value in {**header.metadata, **values}.items() if value is not None}
    return dataclasses.replace(header, metadata=metadata)


def a_text(value: str) -> MetaValue:
    return MetaValue(ValueType.STRING, value)


TOKENIZER_KEYS: dict[str, tuple[dict[str, MetaValue | None], str]] = {
    "no model": ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is 'None'"),
    "unknown model": ({"tokenizer.ggml.model": a_text("\x1b[2J")}, r"model is '\\x1b\[2J', expected"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "tokens is missing or empty"),
    "no merges": ({"tokenizer.ggml.merges": None}, "merges is missing"),
    "no scores": ({"tokenizer.ggml.model": a_text("llama")}, "scores is missing"),
    "a flag that is a text": ({"tokenizer.ggml.add_bos_token": a_text("yes")}, "has the type STRING, expected a bool"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZER_KEYS)
def test_a_malformed_vocabulary_is_refused(header: GgufHeader, case: str) -> None:
    keys, message = TOKENIZER_KEYS[case]
    with pytest.raises(QLocalError, match=message):
        gguf_metadata.read_tokenizer(with_keys(header, keys))


def test_a_file_without_an_embedding_is_refused(header: GgufHeader) -> None:
    tensors = {name: tensor for name, tensor in header.tensors.items() if name != "token_embd.weight"}
    with pytest.raises(FormatError, match=r"tensor 'token_embd\.weight' is missing"):
        gguf_metadata.read_config(dataclasses.replace(header, tensors=tensors))


def test_rope_factors_that_contradict_are_refused(scaled: GgufHeader) -> None:
    linear = {"llama.rope.scaling.type": a_text("linear")}
    with pytest.raises(QLocalError, match=r"rope_freqs\.weight together with llama\.rope\.scaling\.type"):
        gguf_metadata.read_config(with_keys(scaled, linear))
    factors = scaled.tensors["rope_freqs.weight"]
    short = dataclasses.replace(factors, shape=(4,), num_bytes=16)
    for changed, message in [
        (short, "has 4 values, expected"),
        (dataclasses.replace(factors, ggml_type=GgmlType.F16), "is no short row of F32"),
    ]:
        with pytest.raises(FormatError, match=message):
            gguf_metadata.read_config(
                dataclasses.replace(scaled, tensors={**scaled.tensors, "rope_freqs.weight": changed})
            )


def test_two_ids_with_one_text_are_refused() -> None:
    raw = json.loads(tiny.tiny_tokenizer().to_str())
    raw["added_tokens"][1]["content"] = raw["added_tokens"][0]["content"]
    with pytest.raises(TokenizerError, match=r"the ids [0-9]+ and [0-9]+ both mean"):
        vocabulary_for_gguf(TokenizerData(tokenizer_json=json.dumps(raw).encode()), tiny.tiny_config("qwen2"), ())


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="m: holds no safetensors file"):
        open_checkpoint(folder)


def test_several_files_without_an_index_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    with pytest.raises(FormatError, match=r"2 safetensors files but no model\.safetensors\.index\.json"):
        open_checkpoint(folder)


def test_an_index_of_too_many_files_is_refused(folder: Path) -> None:
    weight_map = {f"t{i}": f"x{i}.safetensors" for i in range(hf_folder.MAX_SHARDS + 1)}
    (folder / hf_folder.INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FormatError, match="names 4097 files, at most 4096"):
        hf_folder.read_shards(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"t": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}}
    (tmp_path / hf_folder.INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"b\.safetensors: tensor 't' lies in a\.safetensors too"):
        hf_folder.read_shards(tmp_path)


SETTINGS: dict[str, tuple[Any, str]] = {
    "long template": ({"chat_template": "x" * (hf_folder.MAX_TEMPLATE_BYTES + 1)}, "chat_template has more than"),
    "tokens no object": ({"added_tokens_decoder": 7}, "added_tokens_decoder is not an object"),
    "too many tokens": ({"added_tokens_decoder": {str(i): {} for i in range(65_537)}}, "at most 65536"),
    "token without text": ({"added_tokens_decoder": {"1": {}}}, "holds '1' without a text"),
    "id no number": ({"added_tokens_decoder": {"\u0661": {"content": "x"}}}, "holds '\u0661' without a text"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_malformed_tokenizer_config_is_refused(folder: Path, case: str) -> None:
    fields, message = SETTINGS[case]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"model")
    edit(folder / "tokenizer_config.json", **fields)
    with pytest.raises(ConfigError, match=message):
        hf_folder.read_tokenizer(folder)


def test_quantization_settings_that_are_no_object_are_refused() -> None:
    with pytest.raises(ConfigError, match="quantization_config is no object"):
        parse_quantization_config([4], "config.json")


def test_a_file_over_its_limit_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate((4 << 20) + 1)
    with pytest.raises(FormatError, match=r"config\.json: has 4194305 bytes, at most 4194304"):
        open_checkpoint(folder)


def test_an_importance_file_over_its_limit_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "m.dat").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(FormatError, match="at most 1073741824"):
        read_imatrix(tmp_path / "m.dat")


def test_an_importance_file_of_another_type_is_refused(tmp_path: Path) -> None:
    infos = [info("a.in_sum2", [32], 1), info("a.counts", [1], 0, 64)]
    keys = [key("general.type", TEXT, string("imatrix"))]
    (tmp_path / "m.gguf").write_bytes(file_bytes(keys, infos, bytes(96)))
    with pytest.raises(FormatError, match=r"'a\.in_sum2' is F16 of 64 bytes, expected F32"):
        read_imatrix(tmp_path / "m.gguf")


@pytest.mark.parametrize("score", [float("nan"), 0.0])
def test_a_piece_of_no_known_type_is_refused(score: float) -> None:
    piece = sentencepiece_proto.Piece("a", score, 1 if score != score else 9)
    content = sentencepiece_proto.bpe_model([piece], has_dummy_prefix=True).encode()
    with pytest.raises(TokenizerError, match="piece 'a' has type"):
        parse_sentencepiece(content)


def test_a_file_that_is_cut_off_after_it_was_opened_is_refused(folder: Path) -> None:
    infos = read_header(folder / "model.safetensors")
    whole = (folder / "model.safetensors").stat().st_size
    os.truncate(folder / "model.safetensors", whole // 2)
    for name in infos:
        with pytest.raises(FormatError, match="was changed while it was read"):
            infos[name].load()
    last = max(infos.values(), key=lambda tensor: tensor.offset)
    with pytest.raises(FormatError, match="ends at byte"):
        last.file.read(last.offset, last.num_bytes)


def test_a_file_that_is_written_to_after_it_was_opened_is_refused(folder: Path) -> None:
    tensor = next(iter(read_header(folder / "model.safetensors").values()))
    assert tensor.load() is not None
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(FormatError, match="was changed while it was read"):
        tensor.load()


def test_a_disk_that_fails_while_reading_or_mapping_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = next(iter(read_header(folder / "model.safetensors").values()))

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(mapped_file.os, "pread", fail)
        with pytest.raises(FormatError, match="cannot be read: Input/output error"):
            tensor.file.read(0, 8)
    monkeypatch.setattr(mapped_file.mmap, "mmap", fail)
    with pytest.raises(FormatError, match="cannot be mapped: Input/output error"):
        tensor.load()


@pytest.mark.parametrize("name", ["quantize_config.json", "tokenizer.model", "chat_template.jinja", "tokenizer.json"])
def test_a_fifo_or_a_link_under_any_name_of_the_folder_is_refused_at_once(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    edit(folder / "config.json", quantization_config=None)
    os.mkfifo(folder / name)
    with pytest.raises(FormatError, match=f"{name}: is not a regular file"):
        open_checkpoint(folder)
    (folder / name).unlink()
    (tmp_path / "secret").write_text("{}")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match=f"{name}: is a link to"):
        open_checkpoint(folder)


def test_a_copy_does_not_follow_a_strangers_link_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_file, "_COPY_BYTES", 7)
    (tmp_path / "a").write_bytes(bytes(range(50)))
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == bytes(range(50))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(FormatError, match="is a link to"):
        copy_file(tmp_path / "link", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_source_cut_off_anywhere_is_refused_before_a_tensor_is_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.stat().st_size
    for number in range(999, -1, -1):
        os.truncate(path, whole * number // 1000)
        with pytest.raises(FormatError, match=r"model\.safetensors"):
            open_checkpoint(folder)


GEOMETRY: dict[str, tuple[dict[str, Any], str]] = {
    "heads that do not divide": ({"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
    "a width that does not divide": ({"num_attention_heads": 3, "num_key_value_heads": 1}, "head_dim is missing"),
    "an odd head": ({"head_dim": 33}, "head_dim is 33, expected an even number"),
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_a_geometry_that_contradicts_itself_is_refused(folder: Path, case: str) -> None:
    fields, message = GEOMETRY[case]
    edit(folder / "config.json", **fields)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(folder)


def test_a_norm_in_blocks_is_refused(header: GgufHeader, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = dataclasses.replace(header.tensors["output_norm.weight"], ggml_type=GgmlType.Q8_0)
    changed = dataclasses.replace(header, tensors={**header.tensors, "output_norm.weight": norm})
    monkeypatch.setattr("qlocal.formats.gguf_checkpoint.read_gguf", lambda _: changed)
    with pytest.raises(FormatError, match=r"output_norm\.weight is Q8_0, expected F32"):
        open_checkpoint(header.path)


def test_rope_divisors_that_are_not_positive_are_refused(scaled: GgufHeader, tmp_path: Path) -> None:
    factors = scaled.tensors["rope_freqs.weight"]
    content = bytearray(scaled.path.read_bytes())
    content[factors.offset : factors.offset + 4] = struct.pack("<f", -1.0)
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(FormatError, match="a divisor that is not positive"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_folder_without_any_vocabulary_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        open_checkpoint(folder).tokenizer()


def test_a_configuration_that_speaks_of_a_million_tensors_is_refused_in_little_memory(tmp_path: Path) -> None:
    many = {"num_hidden_layers": 1024, "num_local_experts": 256}
    folder = tiny.write_checkpoint(tmp_path / "m", "mixtral")
    edit(folder / "config.json", **many)
    paths, _ = gguf_files.write_tiny_gguf(tmp_path / "m.gguf", "mixtral")
    content = paths[0].read_bytes()
    for name, found in ((b"llama.block_count", 2), (b"llama.expert_count", 4)):
        before = string(name) + struct.pack("<II", 4, found)
        assert content.count(before) == 1
        content = content.replace(before, string(name) + struct.pack("<II", 4, 1024 if found == 2 else 256))
    paths[0].write_bytes(content)
    for path in (folder, paths[0]):
        tracemalloc.start()
        with pytest.raises(CheckpointError, match="more than 1000 tensors do not match"):
            open_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20


@pytest.mark.parametrize("entry", [3, None, "x", ["x"]])
def test_an_added_token_that_is_no_object_is_refused(entry: Any) -> None:
    raw = json.loads(tiny.tiny_tokenizer().to_str()) | {"added_tokens": [entry]}
    with pytest.raises(TokenizerError, match=r"added_tokens holds .*, expected an object"):
        vocabulary_for_gguf(TokenizerData(tokenizer_json=json.dumps(raw).encode()), tiny.tiny_config("qwen2"), ())
