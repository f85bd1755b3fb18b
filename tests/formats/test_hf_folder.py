"""Files of a folder: index paths, Hub links, pickles, tokenizer and template in all their forms."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlocal.errors import ConfigError, FormatError, QLocalError, TokenizerError
from qlocal.formats import hf_folder
from qlocal.formats.checkpoint import open_checkpoint
from tests import tiny

ESCAPES = [
    "../x.safetensors", "/etc/passwd", "/tmp/x.safetensors", "a/b.safetensors", "..\\x.safetensors",
    "a\\b.safetensors", "\\\\host\\share\\x.safetensors", "C:\\x.safetensors", "x.safetensors\0", "\0.safetensors",
    "%2e%2e/x.safetensors", "..%2fx.safetensors", ".safetensors", "..safetensors", ".hidden.safetensors",
    "x.safetensors.", "x.safetensors ", " x.safetensors", "x.safetensors/", "./x.safetensors", "x.bin", "x.pt",
    "x.safetensors\n", "\u2025/x.safetensors", "x\u2215y.safetensors", "~/x.safetensors", "file:///x.safetensors",
    "x..safetensors", "a/../x.safetensors", "", ".", "..", "x" * 300 + ".safetensors", "x\x1b[31m.safetensors",
    "-x.safetensors", "x.SAFETENSORS", "x.safetensors;rm", "$(x).safetensors", "x.safetensors\r",
    "\u202ex.safetensors",
]  # fmt: skip


def _edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


@pytest.mark.parametrize("name", ESCAPES)
def test_an_index_names_only_files_of_its_own_folder(tmp_path: Path, name: str) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    _edit_json(folder / hf_folder.INDEX_NAME, weight_map={"a": name})
    with pytest.raises(FormatError, match=r"expected the plain name of a \.safetensors file"):
        hf_folder.read_shards(folder)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", {"a": 3}, {"a": None}, {"a": ["x.safetensors"]}])
def test_a_malformed_index_is_refused(tmp_path: Path, weight_map: Any) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    _edit_json(folder / hf_folder.INDEX_NAME, weight_map=weight_map)
    with pytest.raises(FormatError, match="weight_map"):
        hf_folder.read_shards(folder)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", shards=2)
    path = folder / hf_folder.INDEX_NAME
    index = json.loads(path.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="but it lies in model-00001-of-00002"):
        hf_folder.read_shards(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.safetensors: cannot be opened: No such file"):
        open_checkpoint(folder)


def test_pickles_are_refused_with_advice(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FormatError, match=r"pytorch_model\.bin, a pickle") as caught:
        open_checkpoint(folder)
    assert caught.value.hint is not None and "safetensors" in caught.value.hint


def test_the_hub_cache_loads_through_its_links(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source")
    repo = tmp_path / "models--x--y"
    snapshot = repo / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for i, path in enumerate(sorted(source.iterdir())):
        blob = f"{i:064x}" if path.suffix == ".safetensors" else f"{i:040x}"
        shutil.copy(path, repo / "blobs" / blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.read("model.norm.weight").shape == (128,)
    assert checkpoint.tokenizer().tokenizer_json == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "link",
    ["../../../etc/passwd", "/etc/passwd", "../../blobs/../secret", "../../blobs/xyz", "../blobs/" + "0" * 40,
     "../../blobs/" + "0" * 39, "../../blobs/" + "0" * 41, "../../blobs/" + "A" * 40, "other.safetensors",
     "../../blobs/" + "0" * 40 + "/", "./../../blobs/" + "0" * 40, "/dev/zero", "model.safetensors"],
)  # fmt: skip
def test_any_other_link_is_refused(tmp_path: Path, link: str) -> None:
    folder = tiny.write_checkpoint(tmp_path / "a" / "b" / "m")
    shutil.move(folder / "model.safetensors", folder / "other.safetensors")
    (folder / "model.safetensors").symlink_to(link)
    with pytest.raises(FormatError):
        open_checkpoint(folder)


def test_a_blob_that_is_itself_a_link_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "snapshots" / "rev")
    (tmp_path / "blobs").mkdir()
    shutil.move(folder / "model.safetensors", tmp_path / "real")
    (tmp_path / "blobs" / ("0" * 40)).symlink_to(tmp_path / "real")
    (folder / "model.safetensors").symlink_to("../../blobs/" + "0" * 40)
    with pytest.raises(FormatError, match="is a link"):
        open_checkpoint(folder)


def test_the_old_gptq_name_and_its_config_are_read(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    _edit_json(folder / "quantize_config.json", bits=4, group_size=128, desc_act=False, sym=True)
    assert hf_folder.read_config(folder)["quantization_config"]["group_size"] == 128
    assert len(hf_folder.read_shards(folder)[1]) == 1


@pytest.mark.parametrize(
    ("fields", "template"),
    [
        ({"chat_template": "plain"}, "plain"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}, "d"),
        ({}, None),
    ],
)
def test_a_chat_template_is_found_in_every_form(tmp_path: Path, fields: dict[str, Any], template: str | None) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    assert hf_folder.read_tokenizer(folder).chat_template == template
    (folder / "chat_template.jinja").write_text("file")
    assert hf_folder.read_tokenizer(folder).chat_template == "file"


def test_special_tokens_are_read_as_text_or_object(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    _edit_json(folder / "tokenizer_config.json", bos_token={"content": "<s>"}, eos_token="</s>")
    data = hf_folder.read_tokenizer(folder)
    assert (data.bos_token, data.eos_token, data.add_bos) == ("<s>", "</s>", False)


def test_the_post_processor_decides_about_bos_where_the_config_is_silent(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    raw = json.loads((folder / "tokenizer.json").read_text())
    assert hf_folder.read_tokenizer(folder).add_bos is False
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]}
    raw["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    assert hf_folder.read_tokenizer(folder).add_bos is True


@pytest.mark.parametrize("processor", [{"type": "ByteLevel"}, {"type": "Sequence", "processors": 3}, "none"])
def test_a_post_processor_without_bos_adds_none(tmp_path: Path, processor: Any) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}))
    raw = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(raw | {"post_processor": processor}))
    assert hf_folder.read_tokenizer(folder).add_bos is False


def test_a_sentencepiece_model_alone_begins_with_bos(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", "mixtral")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"model")
    (folder / "tokenizer_config.json").write_text("{}")
    data = hf_folder.read_tokenizer(folder)
    assert (data.sentencepiece_model, data.add_bos) == (b"model", True)


def test_sentencepiece_is_taken_where_tokenizer_json_is_its_conversion(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", "mixtral")
    (folder / "tokenizer.model").write_bytes(b"model")
    assert hf_folder.read_tokenizer(folder).tokenizer_json is not None
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["byte_fallback"] = True
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    decoder = {"0": {"content": "<unk>", "special": True}, "320": {"content": "<x>"}}
    _edit_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    data = hf_folder.read_tokenizer(folder)
    assert data.tokenizer_json is None and data.sentencepiece_model == b"model"
    assert data.added_tokens == {0: ("<unk>", True), 320: ("<x>", False)}


def test_no_tokenizer_is_an_error_with_the_folder(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"m: holds neither tokenizer\.json nor tokenizer\.model"):
        open_checkpoint(folder).tokenizer()


def test_generation_defaults_join_the_stop_ids_of_both_files(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", overrides={"eos_token_id": 7})
    _edit_json(folder / "generation_config.json", eos_token_id=[3, 5], top_p=0.8, top_k=20, repetition_penalty=1.1)
    defaults = open_checkpoint(folder).generation_defaults()
    assert defaults.stop_ids == (3, 5, 7)
    assert (defaults.temperature, defaults.top_k, defaults.top_p, defaults.repetition_penalty) == (0.7, 20, 0.8, 1.1)


def test_without_a_generation_config_the_stop_ids_are_those_of_the_model(tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m", overrides={"eos_token_id": [7, 8]})
    (folder / "generation_config.json").unlink(missing_ok=True)
    defaults = open_checkpoint(folder).generation_defaults()
    assert (defaults.stop_ids, defaults.temperature) == ((7, 8), None)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"), ("config.json", "[]"), ("config.json", '{"a": NaN}'),
        ("generation_config.json", '{"temperature": "hot"}'), ("generation_config.json", '{"eos_token_id": -1}'),
        ("generation_config.json", '{"top_k": 1e300}'), ("tokenizer_config.json", '{"bos_token": 3}'),
        ("tokenizer_config.json", '{"chat_template": 3}'), ("tokenizer_config.json", '{"chat_template": [3]}'),
        ("chat_template.jinja", "\udcff"),
    ],
)  # fmt: skip
def test_malformed_files_end_in_one_sentence(tmp_path: Path, file: str, content: str) -> None:
    folder = tiny.write_checkpoint(tmp_path / "m")
    (folder / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    try:
        checkpoint = open_checkpoint(folder)
        checkpoint.tokenizer()
        checkpoint.generation_defaults()
    except QLocalError as error:
        assert file in error.message or content == '{"chat_template": [3]}'
    else:
        assert content == '{"chat_template": [3]}', "only a list without a default template is no error"


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        open_checkpoint(tmp_path)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(FormatError, match=r"x\.gguf: is neither a folder nor a GGUF file"):
        open_checkpoint(tmp_path / "x.gguf")
    with pytest.raises(FormatError, match="there is no such file"):
        open_checkpoint(tmp_path / "y.gguf")
