"""Which models speak of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qlocal.errors import UsageError
from qlocal.tokenizer.shared import require_same_tokens


@dataclass
class Codec:
    tokens: list[bytes]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id]


def test_vocabularies_that_differ_in_size_alone_are_the_same() -> None:
    require_same_tokens(Codec([b"a", b"b"]), Codec([b"a", b"b", b"", b"[PAD3]"]), "large", "small")


def test_another_token_is_refused_with_both_and_what_to_do() -> None:
    with pytest.raises(UsageError, match="small cannot guess for large: token 1 is 'x' in the one and 'b'") as found:
        require_same_tokens(Codec([b"a", b"b"]), Codec([b"a", b"x"]), "large", "small")
    assert found.value.hint is not None and "same family" in found.value.hint
