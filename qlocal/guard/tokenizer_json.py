"""tokenizer.json of a Hugging Face folder: checked, then handed to `bpe`.

Only the shapes that language models of this family use are accepted; a rule that multiplies text is refused.
"""

from __future__ import annotations

from typing import Any

from qlocal.errors import FormatError
from qlocal.guard.bpe import BpeSpec, build, flatten, parse_merges
from qlocal.guard.errors import vocabulary_error
from qlocal.guard.vocabulary import AddedToken, Vocabulary
from qlocal.strict_json import parse_json_object

MAX_FILE_BYTES = 64 << 20
MAX_REPLACE_CHARS = 8
NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "Prepend", "Replace"}
PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"}
MAX_RULES = 16
OPTIONS = {"ignore_merges": bool, "byte_fallback": bool, "fuse_unk": bool, "unk_token": str}
"""Fields of the model that are handed on, and their types."""


def load(data: bytes) -> Vocabulary:
    """Return the vocabulary of the file's bytes; JobError naming the field that is wrong."""
    raw = _parse(data)
    model = _model(raw)
    added = _added_tokens(raw.get("added_tokens") or [])
    _check_rules("normalizer", raw.get("normalizer"), NORMALIZERS)
    _check_rules("pre_tokenizer", raw.get("pre_tokenizer"), PRE_TOKENIZERS)
    return build(
        BpeSpec(
            tokens=model["vocab"],
            merges=parse_merges(model["merges"]),
            added=added,
            is_byte_level=_is_byte_level(raw),
            normalizer=raw.get("normalizer"),
            pre_tokenizer=raw.get("pre_tokenizer"),
            post_processor=raw.get("post_processor"),
            options={name: model[name] for name in OPTIONS if model.get(name)},
        )
    )


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_FILE_BYTES:
        raise vocabulary_error(f"tokenizer.json has {len(data)} bytes, the limit is {MAX_FILE_BYTES}")
    try:
        return parse_json_object(data, "tokenizer.json")
    except FormatError as error:
        raise vocabulary_error(error.message) from error


def _model(raw: dict[str, Any]) -> dict[str, Any]:
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise vocabulary_error(f"tokenizer.json: model type {str(kind)[:40]!r} is not supported, only BPE is")
    for name, kind in (("vocab", dict), ("merges", list)):
        if not isinstance(model.get(name), kind):
            raise vocabulary_error(f"tokenizer.json: field 'model.{name}' is missing or no {kind.__name__}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            shown = repr(model[name])[:40]
            raise vocabulary_error(f"tokenizer.json: field 'model.{name}' is {shown}, which is not supported")
    for name, kind in OPTIONS.items():
        if model.get(name) is not None and not isinstance(model[name], kind):
            raise vocabulary_error(f"tokenizer.json: field 'model.{name}' is no {kind.__name__}")
    return model


def _added_tokens(entries: Any) -> tuple[AddedToken, ...]:
    if not isinstance(entries, list):
        raise vocabulary_error("tokenizer.json: field 'added_tokens' is no list")
    for entry in entries:
        if not (isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("content"), str)):
            raise vocabulary_error(f"tokenizer.json: the entry {str(entry)[:60]!r} of 'added_tokens' is malformed")
    return tuple(
        AddedToken(
            id=entry["id"],
            text=entry["content"],
            is_special=bool(entry.get("special")),
            strips_left=bool(entry.get("lstrip")),
            strips_right=bool(entry.get("rstrip")),
            single_word=bool(entry.get("single_word")),
        )
        for entry in entries
        if entry["content"]
    )


def _check_rules(name: str, rule: Any, known: set[str]) -> None:
    if rule is not None and not isinstance(rule, dict):
        raise vocabulary_error(f"tokenizer.json: field '{name}' is no object")
    steps = flatten(rule)
    if len(steps) > MAX_RULES:
        raise vocabulary_error(f"tokenizer.json: field '{name}' has {len(steps)} steps, the limit is {MAX_RULES}")
    for step in steps:
        if step["type"] not in known:
            raise vocabulary_error(f"tokenizer.json: {name} {step['type'][:40]!r} is not supported")
        _check_growth(name, step)


def _check_growth(name: str, step: dict[str, Any]) -> None:
    """Refuse replacements that let a chain of rules multiply the text."""
    added = step.get("content" if step["type"] == "Replace" else "prepend", "")
    if not isinstance(added, str) or len(added) > MAX_REPLACE_CHARS:
        raise vocabulary_error(
            f"tokenizer.json: {name} {step['type']!r} inserts more than {MAX_REPLACE_CHARS} characters"
        )
    if step["type"] == "Replace":
        pattern = step.get("pattern")
        replaced = pattern.get("String") if isinstance(pattern, dict) else None
        if len(added) > 1 and (not isinstance(replaced, str) or len(added) > len(replaced)):
            raise vocabulary_error(f"tokenizer.json: {name} 'Replace' makes the text longer")


def _is_byte_level(raw: dict[str, Any]) -> bool:
    steps = [*flatten(raw.get("decoder")), *flatten(raw.get("pre_tokenizer"))]
    return any(step.get("type") == "ByteLevel" for step in steps)
