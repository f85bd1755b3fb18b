"""A folder's tokenizer as GGUF's vocabulary: from a byte-level BPE tokenizer.json, or a sentencepiece model.

GGUF names its split rule and cannot spell one out, so a tokenizer is written only when its rule has a name there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qlocal.errors import TokenizerError
from qlocal.formats.base import GgufVocabulary, TokenizerData
from qlocal.formats.sentencepiece_model import parse_sentencepiece
from qlocal.models.base import ModelConfig
from qlocal.strict_json import parse_json_object

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_ADDED_SCORE, _UNUSED_SCORE = -1000.0, -10_000.0
_JSON = "tokenizer.json"

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_PATTERN = _QWEN2_PATTERN.replace(r"|\p{N}| ?", r"|\p{N}{1,3}| ?")
_PRE_OF_PATTERN = {_QWEN2_PATTERN: "qwen2", _LLAMA3_PATTERN: "llama-bpe"}
# llama.cpp applies no normalizer; Qwen's NFC changes nothing in text that is composed already, as nearly all is.
_NORMALIZERS = (None, "NFC")


def vocabulary_for_gguf(data: TokenizerData, config: ModelConfig, stop_ids: tuple[int, ...]) -> GgufVocabulary:
    """Return the vocabulary with one entry for every row of the embedding.

    stop_ids: the end of a turn first, since GGUF names a single end of text. TokenizerError when the tokenizer has
    no counterpart in GGUF, or more tokens than the embedding has rows.
    """
    if data.gguf_vocabulary is not None:
        return data.gguf_vocabulary
    if data.sentencepiece_model is not None:
        return _from_sentencepiece(data, config, stop_ids)
    assert data.tokenizer_json is not None, "TokenizerData holds exactly one vocabulary"
    return _from_tokenizer_json(data, parse_json_object(data.tokenizer_json, _JSON), config, stop_ids)


class _Rows:
    """Texts and types by token id. Ids without a token get texts of their own: llama.cpp insists on distinct ones."""

    def __init__(self, count: int, where: str) -> None:
        self.tokens = [f"[PAD{i}]" for i in range(count)]
        self.types = [UNUSED] * count
        self.where = where

    def put(self, token_id: Any, text: Any, kind: int) -> None:
        if type(token_id) is not int or not 0 <= token_id < len(self.tokens) or not isinstance(text, str):
            raise TokenizerError(
                f"{self.where}: token {str(text)[:40]!r} has the id {str(token_id)[:40]}, "
                f"but the embedding has {len(self.tokens)} rows"
            )
        self.tokens[token_id] = text
        self.types[token_id] = kind

    def check_distinct(self) -> None:
        if len(set(self.tokens)) == len(self.tokens):
            return
        seen: dict[str, int] = {}
        for i, text in enumerate(self.tokens):
            if text in seen:
                raise TokenizerError(f"{self.where}: the ids {seen[text]} and {i} both mean {text[:40]!r}")
            seen[text] = i


def _from_tokenizer_json(
    data: TokenizerData, raw: Mapping[str, Any], config: ModelConfig, stop_ids: tuple[int, ...]
) -> GgufVocabulary:
    model = raw.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise TokenizerError(f"{_JSON}: is not a BPE model; GGUF files are written for byte-level BPE")
    if model.get("byte_fallback"):
        raise TokenizerError(f"{_JSON}: was made from a sentencepiece model", hint="Put its tokenizer.model beside it.")
    rows = _Rows(config.vocab_size, _JSON)
    for text, token_id in model["vocab"].items():
        rows.put(token_id, text, NORMAL)
    for token in _list_of(raw, "added_tokens"):
        if not isinstance(token, Mapping):
            raise TokenizerError(f"{_JSON}: added_tokens holds {str(token)[:40]!r}, expected an object")
        rows.put(token.get("id"), token.get("content"), CONTROL if token.get("special") is True else USER_DEFINED)
    rows.check_distinct()
    return GgufVocabulary(
        model="gpt2",
        pre=split_rule(raw),
        tokens=rows.tokens,
        token_types=rows.types,
        scores=None,
        merges=[_merge(merge) for merge in _list_of(model, "merges")],
        bos_token_id=_bos(data, config, rows.tokens),
        eos_token_id=_eos(data, config, rows.tokens, stop_ids),
    )


def _list_of(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name) or []
    if not isinstance(value, list):
        raise TokenizerError(f"{_JSON}: {name} is no list")
    return value


def split_rule(raw: Mapping[str, Any]) -> str:
    """Return GGUF's name for the pre-tokenizer of a tokenizer.json; TokenizerError when it has none."""
    normalizer = raw.get("normalizer")
    kind = normalizer.get("type") if isinstance(normalizer, Mapping) else normalizer
    steps = _steps(raw.get("pre_tokenizer"))
    shapes = [step.get("type") for step in steps]
    byte_level = steps[-1] if shapes[-1:] == ["ByteLevel"] else {}
    if kind in _NORMALIZERS and byte_level.get("add_prefix_space") is False:
        own_split = byte_level.get("use_regex", True)
        if shapes == ["Split", "ByteLevel"] and not own_split and _pattern(steps[0]) in _PRE_OF_PATTERN:
            return _PRE_OF_PATTERN[_pattern(steps[0])]
        if shapes == ["Digits", "ByteLevel"] and own_split and steps[0].get("individual_digits") is True:
            return "smollm"
        if shapes == ["ByteLevel"] and own_split:
            return "gpt-2"
    raise TokenizerError(
        f"{_JSON}: its splitting ({', '.join(map(str, shapes)) or 'none'}; normalizer {kind}) has no name in GGUF",
        hint="GGUF files are written for the tokenizers of Qwen2, Llama 3, SmolLM, GPT-2 and for sentencepiece.",
    )


def _steps(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    if not isinstance(pre_tokenizer, Mapping):
        return []
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    return [s for s in steps if isinstance(s, Mapping)] if isinstance(steps, list) else []


def _pattern(step: Mapping[str, Any]) -> str:
    """Return the expression of a Split that isolates its matches, else an empty text."""
    pattern = step.get("pattern")
    is_plain = step.get("behavior") == "Isolated" and step.get("invert") is not True
    return str(pattern.get("Regex", "")) if isinstance(pattern, Mapping) and is_plain else ""


def _merge(merge: Any) -> str:
    """Return 'a b'; newer files write pairs, in which a space of a part becomes its byte-level letter."""
    if isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
        return " ".join(part.replace(" ", "\u0120") for part in merge)
    if isinstance(merge, str) and merge.count(" ") == 1:
        return merge
    raise TokenizerError(f"{_JSON}: merge {str(merge)[:40]!r} is no pair")


def _from_sentencepiece(data: TokenizerData, config: ModelConfig, stop_ids: tuple[int, ...]) -> GgufVocabulary:
    assert data.sentencepiece_model is not None, "the caller has looked"
    model = parse_sentencepiece(data.sentencepiece_model)
    rows = _Rows(config.vocab_size, "tokenizer.model")
    scores = [_UNUSED_SCORE] * config.vocab_size
    for token_id, piece in enumerate(model.pieces):
        rows.put(token_id, piece.text, piece.kind)
        scores[token_id] = piece.score
    for token_id, (text, is_special) in (data.added_tokens or {}).items():
        if token_id >= len(model.pieces):  # the others are pieces of the model
            rows.put(token_id, text, CONTROL if is_special else USER_DEFINED)
            scores[token_id] = _ADDED_SCORE
    rows.check_distinct()
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=rows.tokens,
        token_types=rows.types,
        scores=scores,
        merges=None,
        bos_token_id=_bos(data, config, rows.tokens),
        eos_token_id=_eos(data, config, rows.tokens, stop_ids),
        add_space_prefix=model.add_space_prefix,
    )


def _bos(data: TokenizerData, config: ModelConfig, tokens: list[str]) -> int | None:
    if data.bos_token in tokens:
        return tokens.index(data.bos_token)
    return config.bos_token_id


def _eos(data: TokenizerData, config: ModelConfig, tokens: list[str], stop_ids: tuple[int, ...]) -> int | None:
    """Return the end of a turn: the tokenizer's own eos (a chat model's is that), else the first stop id."""
    if data.eos_token in tokens:
        return tokens.index(data.eos_token)
    ids = stop_ids or config.eos_token_ids
    return ids[0] if ids else None
