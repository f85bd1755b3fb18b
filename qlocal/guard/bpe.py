"""Byte-pair encoding with the `tokenizers` library, from a checked vocabulary, merges and splitting rules.

Both tokenizer.json and the lists of a GGUF file end here, so that the same model gives the same ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from tokenizers import models

from qlocal.guard.errors import vocabulary_error
from qlocal.guard.split_rules import GPT2_REGEX, KNOWN_REGEXES, regexes
from qlocal.guard.vocabulary import AddedToken, Vocabulary, checked_tokens

SENTENCEPIECE_BLANK = "\u2581"
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")
CHUNK_CHARS = 1 << 18
# Where a word begins after a line end, no rule joins the two sides. GPT-2's expression looks ahead inside white
# space, so there the line end must stand alone; the later ones take every line end together with what is before it.
_SINGLE_LINE_END = re.compile(r"(?<=\S)\n(?=\w)")
_ANY_LINE_END = re.compile(r"\n(?=\w)")


@dataclass(frozen=True)
class BpeSpec:
    """normalizer, pre_tokenizer, post_processor: as in tokenizer.json.

    is_byte_level: tokens are written in GPT-2's alphabet of printable stand-ins for bytes.
    """

    tokens: Mapping[str, int]
    merges: list[tuple[str, str]]
    added: tuple[AddedToken, ...]
    is_byte_level: bool
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """ignore_merges, byte_fallback, fuse_unk and unk_token of the model."""


def build(spec: BpeSpec) -> Vocabulary:
    """Return the vocabulary; JobError when merges name unknown tokens, ids collide or a rule is malformed."""
    num_ids = max(checked_tokens(spec.tokens.items()), *(token.id for token in spec.added), 0) + 1
    checked_tokens((token.text, token.id) for token in spec.added)
    library = _library_tokenizer(spec)
    unknown = spec.options.get("unk_token")
    return Vocabulary(
        encoder=_BpeEncoder(library, _later_pre_tokenizer(spec), _safe_line_end(spec)),
        added=spec.added,
        token_bytes=_token_bytes(spec, num_ids),
        has_dummy_prefix=_blank_scheme(spec) == "always",
        drops_first_blank=_blank_scheme(spec) != "never",
        prefix_ids=_prefix_ids(library),
        unknown_id=spec.tokens.get(unknown) if unknown else None,
    )


class _BpeEncoder:
    def __init__(
        self, library: tokenizers.Tokenizer, later_pre_tokenizer: Any | None, line_end: re.Pattern[str] | None
    ) -> None:
        self._library = library
        self._line_end = line_end
        self._first = library.pre_tokenizer
        self._later = later_pre_tokenizer

    def encode(self, text: str, is_first: bool) -> list[int]:
        if self._later is not None:
            self._library.pre_tokenizer = self._first if is_first else self._later
        chunks = [text] if self._line_end is None else line_chunks(text, self._line_end)
        with _library_errors("the tokenizer fails on this text"):
            # The "fast" call leaves out offsets, which take half of the memory.
            return [
                token_id
                for chunk in chunks
                for token_id in self._library.encode_batch_fast([chunk], add_special_tokens=False)[0].ids
            ]


def line_chunks(text: str, line_end: re.Pattern[str]) -> list[str]:
    """Cut a long text at line ends, where every known splitting rule ends a word anyway: the ids stay the same.

    The library takes about 200 bytes a token while it works.
    """
    chunks, start = [], 0
    while len(text) - start > CHUNK_CHARS and (cut := line_end.search(text, start + CHUNK_CHARS)):
        chunks.append(text[start : cut.end()])
        start = cut.end()
    return [*chunks, text[start:]]


def _library_tokenizer(spec: BpeSpec) -> tokenizers.Tokenizer:
    merged = {a + b for a, b in spec.merges}
    vocabulary = _model_vocabulary(spec, merged)
    for a, b in spec.merges:
        # The library panics or fails obscurely on these.
        if a not in vocabulary or b not in vocabulary or a + b not in vocabulary:
            raise vocabulary_error(f"the merge of {a[:40]!r} and {b[:40]!r} names a token that does not exist")
    library = _from_rules(spec)
    with _library_errors("the vocabulary is malformed"):
        library.model = models.BPE(vocab=vocabulary, merges=spec.merges, **spec.options)
        library.add_tokens([_blank_token(token) for token in spec.added if token.is_blank])
    return library


def _model_vocabulary(spec: BpeSpec, merged: set[str]) -> dict[str, int]:
    """Return the tokens that plain text may yield: without the added ones, except runs of blanks."""
    kept = merged | {spec.options.get("unk_token")}
    apart = {t.text for t in spec.added if t.text not in kept and (t.is_special or len(t.text) > 1)}
    vocabulary = {text: token_id for text, token_id in spec.tokens.items() if text not in apart}
    return vocabulary | {token.text: token.id for token in spec.added if token.is_blank}


def _blank_token(token: AddedToken) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token.text, normalized=False, special=False)


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Turn what the library raises into a refusal: plain Exceptions, and panics, which are no Exceptions in pyo3."""
    try:
        yield
    except BaseException as error:
        is_librarys = isinstance(error, Exception) and not isinstance(error, MemoryError)
        if not is_librarys and type(error).__name__ != "PanicException":
            raise
        raise vocabulary_error(f"{what}: {error}") from None


def _from_rules(spec: BpeSpec) -> tokenizers.Tokenizer:
    with _library_errors("a rule of the tokenizer is malformed"):
        return tokenizers.Tokenizer.from_str(
            json.dumps(
                {
                    "version": "1.0",
                    "truncation": None,
                    "padding": None,
                    "added_tokens": [],
                    "normalizer": spec.normalizer,
                    "pre_tokenizer": spec.pre_tokenizer,
                    "post_processor": spec.post_processor,
                    "decoder": None,
                    "model": {"type": "BPE", "vocab": {}, "merges": []},
                }
            )
        )


def _later_pre_tokenizer(spec: BpeSpec) -> Any | None:
    """Return the pre-tokenizer for text that does not begin the prompt, where the two differ."""
    if not any(step.get("prepend_scheme") == "first" for step in flatten(spec.pre_tokenizer)):
        return None
    later = json.loads(json.dumps(spec.pre_tokenizer).replace('"prepend_scheme": "first"', '"prepend_scheme": "never"'))
    return _from_rules(BpeSpec({}, [], (), spec.is_byte_level, pre_tokenizer=later)).pre_tokenizer


def _safe_line_end(spec: BpeSpec) -> re.Pattern[str] | None:
    """Return where a text may be cut without a change of its ids; None for rules that are not known."""
    found = regexes(flatten(spec.pre_tokenizer))
    if not spec.is_byte_level or not found or not found <= KNOWN_REGEXES:
        return None
    return _SINGLE_LINE_END if GPT2_REGEX in found else _ANY_LINE_END


def _blank_scheme(spec: BpeSpec) -> str:
    """Return before which texts a SentencePiece-like tokenizer puts a blank: `always`, the `first` alone, `never`."""
    for step in [*flatten(spec.normalizer), *flatten(spec.pre_tokenizer)]:
        if step["type"] == "Prepend":
            return "always"
        if step["type"] == "Metaspace":
            return str(step.get("prepend_scheme", "always"))
    return "never"


def _prefix_ids(library: tokenizers.Tokenizer) -> tuple[int, ...]:
    with _library_errors("a rule of the tokenizer is malformed"):
        plain = library.encode("a", add_special_tokens=False).ids
        whole = library.encode("a").ids
    for k in range(len(whole) - len(plain) + 1):
        if plain and whole[k : k + len(plain)] == plain:
            return tuple(whole[:k])
    return ()


def flatten(rule: Any) -> list[dict[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder; a Sequence counts as its parts.

    JobError when a step is no object with a type.
    """
    if rule is None:
        return []
    if not isinstance(rule, dict) or not isinstance(rule.get("type"), str):
        raise vocabulary_error(f"tokenizer.json: the rule {str(rule)[:40]!r} is malformed: it is no object with a type")
    if rule["type"] != "Sequence":
        return [rule]
    parts = rule.get("normalizers") or rule.get("pretokenizers") or rule.get("decoders") or []
    if not isinstance(parts, list):
        raise vocabulary_error(f"tokenizer.json: the Sequence {str(parts)[:40]!r} is malformed: it is no list")
    return [step for part in parts for step in flatten(part)]


def _token_bytes(spec: BpeSpec, num_ids: int) -> list[bytes]:
    to_bytes = _from_byte_level if spec.is_byte_level else sentencepiece_bytes
    table = [b""] * num_ids
    for text, token_id in spec.tokens.items():
        table[token_id] = to_bytes(text)
    for token in spec.added:
        table[token.id] = token.text.encode("utf-8", "replace")
    return table


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable stand-in of every byte: itself where printable, else from U+0100 on in order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + k): byte for k, byte in enumerate(hidden)}


_BYTES = byte_alphabet()


def _from_byte_level(text: str) -> bytes:
    try:
        return bytes(map(_BYTES.__getitem__, text))
    except KeyError:
        return text.encode("utf-8", "replace")


def sentencepiece_bytes(piece: str) -> bytes:
    """Return the bytes of a SentencePiece piece: `<0x0A>` is one byte, U+2581 is a blank."""
    if _BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(piece[3:5])
    return piece.replace(SENTENCEPIECE_BLANK, " ").encode("utf-8", "replace")


def parse_merges(merges: Iterable[Any]) -> list[tuple[str, str]]:
    """Return merges as pairs; files hold them as pairs or as `a b`."""
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise vocabulary_error(f"the merge {str(merge)[:60]!r} is not a pair of tokens")
        pairs.append((pair[0], pair[1]))
    return pairs
