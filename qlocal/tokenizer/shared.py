"""Whether two models speak of the same tokens: a draft model's guesses are ids of the large one's vocabulary."""

from __future__ import annotations

from typing import Protocol

from qlocal.errors import UsageError


class Codec(Protocol):
    """What is compared of a tokenizer."""

    @property
    def num_tokens(self) -> int: ...
    def token_bytes(self, token_id: int) -> bytes: ...


def require_same_tokens(model: Codec, draft: Codec, model_name: str, draft_name: str) -> None:
    """Raise UsageError when an id that both have stands for different bytes. Ids beyond those of one are no matter:
    vocabularies of one family are padded to different sizes, and such ids are never guessed."""
    for token_id in range(min(model.num_tokens, draft.num_tokens)):
        ours, theirs = model.token_bytes(token_id), draft.token_bytes(token_id)
        if ours != theirs:
            raise UsageError(
                f"{draft_name} cannot guess for {model_name}: token {token_id} is {_shown(theirs)} in the one and "
                f"{_shown(ours)} in the other",
                hint="Take a small model of the same family, or leave --draft out.",
            )


def _shown(token: bytes) -> str:
    return repr(token[:40].decode("utf-8", "replace"))
