"""Ids to text, as they arrive: a character is given out when all its bytes are there, never half of it."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence


class StreamDecoder:
    """Decodes one answer. `push` each id, then `finish` once; all that was returned together is the whole text.

    Skipped ids (control tokens) give no text. Where the tokenizer begins every text with a blank of its own
    (SentencePiece), that blank is left out at the very start and nowhere else.
    """

    def __init__(self, token_bytes: Sequence[bytes], skipped_ids: Collection[int], drops_first_blank: bool) -> None:
        self._token_bytes = token_bytes
        self._skipped_ids = skipped_ids
        self._at_start = drops_first_blank
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that is complete with this id; often empty inside Chinese or an emoji."""
        if token_id in self._skipped_ids or not 0 <= token_id < len(self._token_bytes):
            return ""
        data = self._token_bytes[token_id]
        if self._at_start and data:
            data = data.removeprefix(b" ")
            self._at_start = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character whose last bytes never came, else nothing."""
        return self._utf8.decode(b"", final=True)
