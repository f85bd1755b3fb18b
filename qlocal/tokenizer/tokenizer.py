"""A model's tokenizer: encoding runs in the guard, decoding here, from the bytes of the tokens alone."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from qlocal.errors import TemplateError, TokenizerError
from qlocal.formats.base import GgufVocabulary, TokenizerData
from qlocal.guard.client import Guard, LoadedVocabulary
from qlocal.protocol import Vocabulary
from qlocal.tokenizer.decoder import StreamDecoder
from qlocal.tokenizer.fill_in import FillIn, find
from qlocal.tokenizer.known_templates import sha256
from qlocal.tokenizer.tool_calls import OPEN, ToolFormat, format_of

Message = Mapping[str, Any]
END_OF_TURN_NAMES = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
"""Control tokens that end an answer wherever they exist; the template's own is found by rendering one."""


class Tokenizer:
    """Made by `Tokenizer.load`. Errors are TokenizerError, or TemplateError for what concerns the chat template."""

    def __init__(self, data: TokenizerData, guard: Guard, vocabulary: LoadedVocabulary) -> None:
        self._guard = guard
        self._vocabulary = vocabulary
        self._template = data.chat_template
        self._ids_by_text = {text: token_id for token_id, text, _ in vocabulary.added}
        self.num_tokens = vocabulary.num_tokens
        """Ids at or above it have no token, though the embedding may have rows for them."""
        self.special_ids = frozenset(token_id for token_id, _, is_special in vocabulary.added if is_special)
        gguf = data.gguf_vocabulary
        self.bos_token_id = self._named_id(data.bos_token, gguf.bos_token_id if gguf else None)
        self.eos_token_id = self._named_id(data.eos_token, gguf.eos_token_id if gguf else None)
        self._prefix_ids = self._find_prefix(data)
        self._constants = {
            "bos_token": data.bos_token or self._text_of(self.bos_token_id),
            "eos_token": data.eos_token or self._text_of(self.eos_token_id),
        }

    @classmethod
    def load(cls, data: TokenizerData, guard: Guard) -> Tokenizer:
        """Load the vocabulary in the guard; TokenizerError when it is malformed or of an unknown kind."""
        return cls(data, guard, guard.load_vocabulary(*_request(data)))

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @cached_property
    def template_sha256(self) -> str | None:
        """The hash that tells templates apart; None where there is no template."""
        return sha256(self._template) if self._template else None

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None where its template takes no tools, or the way is not known."""
        found = format_of(self._template or "")
        # A tag that is a control token is not shown, so no call could be read.
        hidden = found is ToolFormat.TAGGED and self._ids_by_text.get(OPEN) in self.special_ids
        return None if hidden else found

    @cached_property
    def fill_in(self) -> FillIn | None:
        """The tokens that ask for what stands between two texts; None where the vocabulary has none."""
        return find(self._ids_by_text, self._prefix_ids)

    def vocabulary(self, stop_ids: Sequence[int]) -> Vocabulary:
        """Return the bytes of all tokens, as the engine needs them for grammars."""
        tokens = self._vocabulary.token_bytes
        lengths = array("I", map(len, tokens)).tobytes()
        return Vocabulary(b"".join(tokens), lengths, sorted(self.special_ids), list(stop_ids))

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Ids that end an answer: end of sequence, what the template puts after an answer, and the known names.

        The generation config may name more; the caller adds those.
        """
        ids = {self._ids_by_text.get(name) for name in END_OF_TURN_NAMES} | {self.eos_token_id}
        if self._template is not None:
            ids.add(self._guard.end_of_turn(self._vocabulary.key, self._template, self._constants))
        return frozenset(ids - {None})  # type: ignore[arg-type]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` alone: no token in front, and control strings are text like any other."""
        return self._guard.encode(self._vocabulary.key, text)

    def encode_with_specials(self, text: str) -> list[int]:
        """Return the ids of a raw prompt whose author may use control tokens (fill-in-the-middle, own templates).

        Control strings become control tokens, and the token that the model expects at the start of a text is put
        there unless the text begins with it. For text that somebody else has written take `bos_ids() + encode()`.
        """
        ids = self._guard.encode(self._vocabulary.key, text, with_control=True)
        return ids if ids[: len(self._prefix_ids)] == self._prefix_ids else self._prefix_ids + ids

    def encode_answer(self, text: str) -> list[int]:
        """Return the ids of an answer, or of its beginning, as the model would write it behind `encode_chat`'s ids."""
        return self._guard.encode_answer(self._vocabulary.key, text)

    def bos_ids(self) -> list[int]:
        """Return what stands before every raw text of this model: one id, or nothing."""
        return list(self._prefix_ids)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Return the ids of a conversation. Control strings inside messages and tools stay text.

        messages: role and content as in OpenAI's API, `arguments` of tool calls as objects; variables: further
        ones of the template (`date_string`, `enable_thinking`, ...).
        """
        return self._guard.encode_chat(
            self._vocabulary.key,
            self._require_template(),
            {**variables, "messages": _plain(messages), "tools": _plain(tools)},
            self._constants | {"add_generation_prompt": add_generation_prompt},
        )

    def render_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the text that the template makes of a conversation, for reading; `encode_chat` gives the ids."""
        values = {**variables, "messages": _plain(messages), "tools": _plain(tools)}
        constants = self._constants | {"add_generation_prompt": add_generation_prompt}
        return self._guard.render(self._require_template(), values | constants)

    def check_grammar(self, grammar: str) -> None:
        """Raise GrammarError for a grammar that no answer can be held to."""
        self._guard.check_grammar(grammar)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; incomplete characters become U+FFFD. Ids without a token give nothing."""
        decoder = self.stream_decoder(skip_special=skip_special)
        return "".join(map(decoder.push, ids)) + decoder.finish()

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        """Return a decoder for one answer."""
        skipped = self.special_ids if skip_special else frozenset()
        return StreamDecoder(self._vocabulary.token_bytes, skipped, self._vocabulary.drops_first_blank)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; empty for an id without a token."""
        return self._vocabulary.token_bytes[token_id] if 0 <= token_id < self.num_tokens else b""

    def _require_template(self) -> str:
        if self._template is None:
            raise TemplateError(
                "this checkpoint has no chat template", hint="Use it for raw completions, or add a chat_template."
            )
        return self._template

    def _named_id(self, text: str | None, fallback: int | None) -> int | None:
        if text is None:
            return fallback if fallback is not None and fallback < self.num_tokens else None
        return self._ids_by_text.get(text)

    def _text_of(self, token_id: int | None) -> str:
        return "" if token_id is None else self.token_bytes(token_id).decode("utf-8", "replace")

    def _find_prefix(self, data: TokenizerData) -> list[int]:
        if data.add_bos and self.bos_token_id is not None:
            return [self.bos_token_id]
        return self._vocabulary.prefix_ids


def _request(data: TokenizerData) -> tuple[str, dict[str, Any]]:
    """Return kind and content of the guard's load job."""
    if data.tokenizer_json is not None:
        return "tokenizer_json", {"bytes": data.tokenizer_json}
    if data.sentencepiece_model is not None:
        added = {token_id: list(entry) for token_id, entry in (data.added_tokens or {}).items()}
        return "sentencepiece", {"bytes": data.sentencepiece_model, "added_tokens": added}
    if data.gguf_vocabulary is not None:
        return "gguf", _gguf_lists(data.gguf_vocabulary)
    raise TokenizerError("the checkpoint has no vocabulary", hint="It needs tokenizer.json or tokenizer.model.")


def _gguf_lists(vocabulary: GgufVocabulary) -> dict[str, Any]:
    return {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": vocabulary.tokens,
        "token_types": vocabulary.token_types,
        "scores": vocabulary.scores,
        "merges": vocabulary.merges,
        "add_space_prefix": vocabulary.add_space_prefix,
    }


def _plain(values: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if values is None else [dict(value) for value in values]
