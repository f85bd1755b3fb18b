from __future__ import annotations

import pytest

from qlocal.tokenizer.fill_in import find

QWEN = {"<|endoftext|>": 0, "<|fim_prefix|>": 1, "<|fim_middle|>": 2, "<|fim_suffix|>": 3, "<|fim_pad|>": 4, "<|x|>": 5}


def test_the_tokens_of_a_vocabulary_are_found_by_name() -> None:
    found = find(QWEN, [])
    assert found is not None
    assert (found.prefix_id, found.suffix_id, found.middle_id) == (1, 3, 2)
    assert found.stop_ids == (0, 1, 2, 3, 4)
    other = find({"<fim_prefix>": 7, "<fim_suffix>": 8, "<fim_middle>": 9}, [6])
    assert other is not None and other.middle_id == 9 and other.begin_ids == (6,)


@pytest.mark.parametrize("missing", ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"])
def test_a_vocabulary_without_one_of_them_cannot_fill_in(missing: str) -> None:
    assert find({name: token_id for name, token_id in QWEN.items() if name != missing}, []) is None
