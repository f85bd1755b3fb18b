"""Characters that are words by themselves: Chinese, Japanese and Korean ones, which are found one by one."""

from __future__ import annotations

import re

_HAN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")


def han(text: str) -> str:
    """Return these characters of a text, one by one, with what stands between them as a gap that no phrase crosses."""
    parts: list[str] = []
    end = 0
    for match in _HAN.finditer(text):
        if parts and match.start() != end:
            parts.append("x")
        parts.append(match[0])
        end = match.end()
    return " ".join(parts)


def is_han(word: str) -> bool:
    """Whether a word has nothing but such characters."""
    return bool(word) and all(_HAN.match(char) for char in word)
