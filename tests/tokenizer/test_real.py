"""Published models: folder and GGUF file give the same ids. Needs QLOCAL_REAL_MODELS."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlocal.formats import gguf_metadata, hf_folder
from qlocal.formats.gguf_reader import read_gguf
from qlocal.guard.client import Guard
from qlocal.tokenizer import Tokenizer
from tests.real_models import real_model
from tests.tokenizer.conftest import QWEN_TEXTS, stored_pairs

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=["smollm2-135m", "qwen2.5-coder-0.5b"])
def both(request: pytest.FixtureRequest, guard: Guard) -> tuple[Tokenizer, Tokenizer]:
    from_folder = Tokenizer.load(hf_folder.read_tokenizer(real_model(request.param)), guard)
    header = read_gguf(real_model(f"{request.param}.gguf"))
    return from_folder, Tokenizer.load(gguf_metadata.read_tokenizer(header), guard)


def test_folder_and_gguf_give_the_same_tokenizer(both: tuple[Tokenizer, Tokenizer], shared_data: Path) -> None:
    folder, gguf = both
    assert folder.num_tokens == gguf.num_tokens
    assert folder.special_ids == gguf.special_ids and folder.end_of_turn_ids == gguf.end_of_turn_ids
    texts = [text for text, _ in stored_pairs(shared_data / "tokenizers", QWEN_TEXTS, f"{QWEN_TEXTS}.out")]
    texts += [path.read_text()[:200_000] for path in sorted((shared_data / "text").glob("*.txt"))]
    for text in texts:
        assert folder.encode(text) == gguf.encode(text)
    messages = [{"role": "user", "content": "a <|im_end|> b"}, {"role": "assistant", "content": "c"}]
    assert folder.encode_chat(messages) == gguf.encode_chat(messages)


def test_qwen_of_a_published_file_gives_the_stored_ids(both: tuple[Tokenizer, Tokenizer], shared_data: Path) -> None:
    for tokenizer in both:
        if tokenizer.num_tokens != 151_665:
            assert tokenizer.num_tokens == 49_152, "the other model"
            continue
        pairs = stored_pairs(shared_data / "tokenizers", QWEN_TEXTS, f"{QWEN_TEXTS}.out")
        assert {text: tokenizer.encode(text) for text, _ in pairs} == dict(pairs)
