"""The text side of a loaded model: prompts to ids, ids to text. Strangers' templates run in the guard.

Knows no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qlocal.formats.base import GenerationDefaults


class StreamDecoder(Protocol):
    """Turns ids into text, never half a character."""

    def push(self, token_id: int) -> str:
        """Return the characters that are complete after this token."""
        ...

    def finish(self) -> str:
        """Return what is left, as replacement characters where bytes are missing."""
        ...


class TextCodec(Protocol):
    """What the server needs of a Tokenizer."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def end_of_turn_ids(self) -> Collection[int]: ...
    def encode_with_specials(self, text: str) -> list[int]: ...
    def encode_answer(self, text: str) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]: ...
    def stream_decoder(self) -> StreamDecoder: ...
    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass
class ModelText:
    """Tokenizer, stop ids and sampling defaults of one checkpoint. `name` is its id for clients."""

    name: str
    path: Path
    tokenizer: TextCodec
    stop_ids: tuple[int, ...]
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    _one_job: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation, ready for the answer. TemplateError, TokenizerError."""
        async with self._one_job:  # the guard is one process and does one job at a time
            return await asyncio.to_thread(self.tokenizer.encode_chat, messages)

    async def encode(self, text: str) -> list[int]:
        """Return the ids of a raw prompt, whose author may use control tokens (fill-in-the-middle), BOS in front."""
        async with self._one_job:
            return await asyncio.to_thread(self.tokenizer.encode_with_specials, text)

    async def encode_answer(self, text: str) -> list[int]:
        """Return the ids of an answer as it follows a conversation."""
        async with self._one_job:
            return await asyncio.to_thread(self.tokenizer.encode_answer, text)

    async def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text by itself: control tokens in it are text."""
        async with self._one_job:
            return await asyncio.to_thread(self.tokenizer.encode, text)


OpenText = Callable[[str, Path], ModelText]
"""Opens the text side of a checkpoint, blocking: (name for clients, path)."""
