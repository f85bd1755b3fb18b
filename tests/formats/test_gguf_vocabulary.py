"""Vocabularies of folders as GGUF's lists."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qlocal.errors import TokenizerError
from qlocal.formats.base import TokenizerData
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from tests import tiny

CONFIG = tiny.tiny_config("qwen2")


def with_merges(merges: list[Any]) -> TokenizerData:
    raw = json.loads(tiny.tiny_tokenizer().to_str())
    raw["model"]["merges"] = merges
    return TokenizerData(tokenizer_json=json.dumps(raw).encode())


def test_a_vocabulary_of_a_gguf_file_stays_what_it_is() -> None:
    known = vocabulary_for_gguf(with_merges([]), CONFIG, ())
    assert vocabulary_for_gguf(TokenizerData(gguf_vocabulary=known), CONFIG, ()) is known


def test_merges_of_both_forms_are_the_same() -> None:
    pairs = vocabulary_for_gguf(with_merges([["a", "b"], ["b", "c"]]), CONFIG, ())
    texts = vocabulary_for_gguf(with_merges(["a b", "b c"]), CONFIG, ())
    assert pairs == texts and pairs.merges == ["a b", "b c"]


@pytest.mark.parametrize("merge", ["a", "a b c", ["a"], [1, 2], None])
def test_a_merge_that_is_no_pair_is_refused(merge: Any) -> None:
    with pytest.raises(TokenizerError, match="is no pair"):
        vocabulary_for_gguf(with_merges([merge]), CONFIG, ())


def test_bos_is_the_tokenizers_or_the_models() -> None:
    data = with_merges([])
    tokens = vocabulary_for_gguf(data, CONFIG, ()).tokens
    config = replace(CONFIG, bos_token_id=3)
    assert vocabulary_for_gguf(replace(data, bos_token=tokens[5]), config, ()).bos_token_id == 5
    assert vocabulary_for_gguf(replace(data, bos_token="nobody's"), config, ()).bos_token_id == 3
