"""The text side of a loaded model: prompts to ids, ids to text. Strangers' templates run in the guard.

Knows no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from qlocal.errors import GrammarError
from qlocal.formats.base import GenerationDefaults
from qlocal.protocol import Vocabulary
from qlocal.schema import Template
from qlocal.tokenizer.fill_in import FillIn
from qlocal.tokenizer.tool_calls import ToolFormat

MAX_CHECKED = 64
"""Grammars whose check is remembered: programs ask again and again with the same one."""


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
    @property
    def tool_format(self) -> ToolFormat | None: ...
    @property
    def fill_in(self) -> FillIn | None: ...
    def vocabulary(self, stop_ids: Sequence[int]) -> Vocabulary: ...
    def check_grammar(self, grammar: str) -> None: ...
    def encode_with_specials(self, text: str) -> list[int]: ...
    def encode_answer(self, text: str) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]: ...
    def stream_decoder(self) -> StreamDecoder: ...
    def token_bytes(self, token_id: int) -> bytes: ...


@dataclass
class ModelText:
    """Tokenizer, stop ids, sampling defaults and template of one checkpoint. `name` is its id for clients. files: those
    that hold its weights."""

    name: str
    path: Path
    tokenizer: TextCodec
    stop_ids: tuple[int, ...]
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    template: Template | None = None
    files: tuple[Path, ...] = ()
    _one_job: asyncio.Lock = field(default_factory=asyncio.Lock)
    _checked: OrderedDict[str, GrammarError | None] = field(default_factory=OrderedDict)

    @property
    def tool_format(self) -> ToolFormat | None:
        return self.tokenizer.tool_format

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the engine must know to hold answers to a grammar."""
        return self.tokenizer.vocabulary(self.stop_ids)

    async def check_grammar(self, grammar: str) -> None:
        """Raise GrammarError for a grammar that answers cannot be held to."""
        if grammar not in self._checked:
            async with self._one_job:
                found = await asyncio.to_thread(self._problem_of, grammar)
            while len(self._checked) >= MAX_CHECKED:
                self._checked.popitem(last=False)
            self._checked[grammar] = found
        problem = self._checked[grammar]
        self._checked.move_to_end(grammar)
        if problem is not None:
            raise GrammarError(problem.message, hint=problem.hint)

    def _problem_of(self, grammar: str) -> GrammarError | None:
        try:
            self.tokenizer.check_grammar(grammar)
        except GrammarError as error:
            return error
        return None

    async def encode_chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """Return the ids of a conversation, ready for the answer. TemplateError, TokenizerError."""
        async with self._one_job:  # the guard is one process and does one job at a time
            return await asyncio.to_thread(self.tokenizer.encode_chat, messages, tools)

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
