"""How byte-level vocabularies split text before merging: the published rules, by the names that GGUF gives them.

GGUF holds a name (`tokenizer.ggml.pre`), tokenizer.json the rule itself; this table joins the two.
"""

from __future__ import annotations

from typing import Any

GPT2_REGEX = "gpt-2"
"""Stands for the expression that is built into the ByteLevel step."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_REGEX = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2_REGEX = _WORDS + r"\p{N}" + _REST
_TEKKEN_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KNOWN_REGEXES = {GPT2_REGEX, _LLAMA3_REGEX, _QWEN2_REGEX, _TEKKEN_REGEX}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


_GPT2 = _sequence(_byte_level(use_regex=True))
_DIGITS_GPT2 = _sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True))
_LLAMA3 = _sequence(_split(_LLAMA3_REGEX), _byte_level(use_regex=False))
_QWEN2 = _sequence(_split(_QWEN2_REGEX), _byte_level(use_regex=False))
_TEKKEN = _sequence(_split(_TEKKEN_REGEX), _byte_level(use_regex=False))

PRE_TOKENIZERS: dict[str, dict[str, Any]] = (
    dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "mellum", "exaone4", "trillion"), _GPT2)
    | dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_GPT2)
    | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe", "dbrx", "lfm2", "pixtral"), _LLAMA3)
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo"), _QWEN2)
    | {"tekken": _TEKKEN}
)
IGNORES_MERGES = {"llama-bpe", "llama3", "llama-v3", "falcon3", "lfm2", "pixtral", "tekken"}
NORMALIZES_NFC = {"qwen2", "deepseek-r1-qwen", "megrez"}
"""Their tokenizer.json begins with NFC, which GGUF has no key for."""


def regexes(steps: list[dict[str, Any]]) -> set[str]:
    """Return the expressions that a pre-tokenizer's steps split by."""
    found = set()
    for step in steps:
        if step["type"] == "Split":
            pattern = step.get("pattern")
            found.add(str(pattern.get("Regex") if isinstance(pattern, dict) else pattern))
        elif step["type"] == "ByteLevel" and step.get("use_regex", True):
            found.add(GPT2_REGEX)
    return found
