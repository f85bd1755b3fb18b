"""Which checkpoints at hand are variants of the loaded one: by their tokens, not by their names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlocal import catalog
from qlocal.guard.client import Guard
from qlocal.server import variants
from qlocal.server.open_text import text_opener
from qlocal.server.text import OpenText
from tests import tiny
from tests.quantized_folders import write_quantized


@pytest.fixture(scope="module")
def open_text() -> Iterator[OpenText]:
    guard = Guard()
    yield text_opener(guard)
    guard.close()


def other_tokens(folder: Path) -> None:
    """Give a folder's vocabulary another token in the place of one."""
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    name, number = next((name, number) for name, number in vocabulary.items() if len(name) > 2)
    merges = [merge for merge in values["model"]["merges"] if "".join(merge) != name]
    del vocabulary[name]
    vocabulary["zzqq"] = number
    values["model"]["merges"] = [m for m in merges if all(part in vocabulary for part in m)]
    values["model"]["merges"] = [m for m in values["model"]["merges"] if "".join(m) in vocabulary]
    path.write_text(json.dumps(values))


def test_variants_have_the_same_tokens_and_those_of_its_size_come_first(tmp_path: Path, open_text: OpenText) -> None:
    bf16 = tiny.write_checkpoint(tmp_path / "one" / "bf16")
    write_quantized(tmp_path / "one" / "awq", "qwen2", "awq")
    tiny.write_checkpoint(tmp_path / "quite-another-name", overrides={"num_hidden_layers": 5})
    other_tokens(tiny.write_checkpoint(tmp_path / "one" / "strange"))
    tiny.write_checkpoint(tmp_path / "llama", "llama")
    broken = tiny.write_checkpoint(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nonsense")
    model = open_text("one/awq", tmp_path / "one" / "awq")
    found = variants.find(model, catalog.installed(tmp_path), open_text)
    assert [(one.name, one.format, one.is_loaded, one.is_same_size) for one in found] == [
        ("one/awq", "awq", True, True),
        ("one/bf16", "bf16", False, True),
        ("quite-another-name", "bf16", False, False),
    ]
    assert found[1].path == bf16 and found[1].num_bytes > found[0].num_bytes


def test_checkpoints_beside_a_path_are_at_hand_too(tmp_path: Path, open_text: OpenText) -> None:
    for name in ("awq", "gptq"):
        tiny.write_checkpoint(tmp_path / "out" / name)
    assert set(catalog.beside(tmp_path / "out" / "awq")) == {"out/awq", "out/gptq"}
    model = open_text("out/awq", tmp_path / "out" / "awq")
    found = variants.find(model, catalog.beside(model.path), open_text)
    assert [one.name for one in found] == ["out/awq", "out/gptq"]
