"""A guard, and tokenizers of tiny and of stored vocabularies."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlocal.formats.base import GgufVocabulary, TokenizerData
from qlocal.guard.client import Guard
from qlocal.tokenizer import Tokenizer
from tests import tiny

QWEN_TEXTS = "ggml-vocab-qwen2.gguf"


@pytest.fixture(scope="session")
def guard() -> Iterator[Guard]:
    with Guard() as running:
        yield running


@pytest.fixture(scope="session")
def tiny_data() -> TokenizerData:
    return TokenizerData(
        tokenizer_json=tiny.tiny_tokenizer().to_str().encode(),
        chat_template=tiny.CHAT_TEMPLATE,
        eos_token="<|im_end|>",
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_data: TokenizerData, guard: Guard) -> Tokenizer:
    return Tokenizer.load(tiny_data, guard)


@pytest.fixture(scope="session")
def qwen_data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerData:
    """Qwen2.5's vocabulary as tokenizer.json, made from the stored rank file."""
    sys.path.insert(0, str(shared_data.parent / "tools"))
    try:
        import qwen_tokenizer_json
    finally:
        sys.path.pop(0)
    path = tmp_path_factory.mktemp("qwen") / "tokenizer.json"
    qwen_tokenizer_json.build(shared_data / "tokenizers" / "qwen.tiktoken", "2.5").save(str(path))
    template = (shared_data / "templates" / "qwen2.5-instruct.jinja").read_text()
    return TokenizerData(tokenizer_json=path.read_bytes(), chat_template=template, eos_token="<|im_end|>")


def as_gguf(data: TokenizerData, pre: str, num_rows: int) -> TokenizerData:
    """Return the same vocabulary as a GGUF file would hold it, filled up to `num_rows`."""
    assert data.tokenizer_json is not None
    raw = json.loads(data.tokenizer_json)
    kinds = {token["id"]: 3 if token["special"] else 4 for token in raw["added_tokens"]}
    texts = {token_id: text for text, token_id in raw["model"]["vocab"].items()}
    texts |= {token["id"]: token["content"] for token in raw["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    eos = next((token["id"] for token in raw["added_tokens"] if token["content"] == data.eos_token), None)
    vocabulary = GgufVocabulary(
        model="gpt2",
        pre=pre,
        tokens=[texts.get(k, f"[PAD{k}]") for k in range(num_rows)],
        token_types=[kinds.get(k, 1 if k in texts else 5) for k in range(num_rows)],
        scores=None,
        merges=merges,
        bos_token_id=None,
        eos_token_id=eos,
    )
    return replace(data, tokenizer_json=None, gguf_vocabulary=vocabulary)


def stored_pairs(folder: Path, texts: str, ids: str) -> list[tuple[str, list[int]]]:
    """Return the (text, ids) pairs of `data/tokenizers`."""
    parts = (folder / f"{texts}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    lines = (folder / ids).read_text().split("\n")
    return [(text, [int(x) for x in line.split()]) for text, line in zip(parts, lines, strict=False)]
