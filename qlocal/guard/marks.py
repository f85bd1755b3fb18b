"""Private marks: what a conversation says never meets the template's control tokens.

Before rendering, every control string inside the conversation is replaced by one private-use character, so the
template can copy, trim or embed it, but the rendered text holds only those control tokens that the template
wrote itself. A string that begins or ends with a part of a control string is marked there too, so that two
neighbouring strings cannot form one together. After the text has been cut, the marks are replaced again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from qlocal.guard.errors import template_error
from qlocal.guard.vocabulary import Matcher

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
# As templates may print one: itself, or escaped by Python's repr or by JSON in ASCII.
_MARKS = re.compile(r"[\U000f0000-\U000ffffd]|\\U000f[0-9a-f]{4}|\\udb[89ab][0-9a-f]\\ud[c-f][0-9a-f]{2}")


class Fragments:
    """The proper prefixes and suffixes of a vocabulary's control strings."""

    def __init__(self, matcher: Matcher) -> None:
        texts = [token.text for token in matcher.tokens]
        self._prefixes = {text[:k] for text in texts for k in range(1, len(text)) if text[:k].strip()}
        self._suffixes = {text[k:] for text in texts for k in range(1, len(text)) if text[k:].strip()}
        self._longest = max((len(text) for text in texts), default=1) - 1

    def leading(self, text: str) -> int:
        """Return how many characters at the start of `text` could end a control string."""
        sizes = range(min(self._longest, len(text)), 0, -1)
        return next((k for k in sizes if text[:k] in self._suffixes), 0)

    def trailing(self, text: str) -> int:
        """Return how many characters at the end of `text` could begin a control string."""
        sizes = range(min(self._longest, len(text)), 0, -1)
        return next((k for k in sizes if text[-k:] in self._prefixes), 0)


class Marks:
    """The marks of one prompt. `fresh` characters occur neither in the conversation nor in the template."""

    def __init__(self, fixed_text: str, conversation: Any) -> None:
        taken = set(_MARKS.findall(fixed_text))
        for text in _strings(conversation):
            taken.update(_MARKS.findall(text))
        self._free = (c for c in map(chr, _PRIVATE_USE) if taken.isdisjoint(_printed_forms(c)))
        self._mark_of: dict[str, str] = {}
        self._text_of: dict[str, str] = {}

    def fresh(self) -> str:
        """Return a character that stands for nothing else in this prompt."""
        character = next(self._free, None)
        if character is None:
            raise template_error("the conversation uses all private-use characters, so nothing in it can be marked")
        return character

    def mark(self, text: str) -> str:
        """Return the one character that stands for `text`."""
        if text not in self._mark_of:
            character = self.fresh()
            self._mark_of[text] = character
            self._text_of |= dict.fromkeys(_printed_forms(character), text)
        return self._mark_of[text]

    def hide(self, text: str, matcher: Matcher, fragments: Fragments | None) -> str:
        """Return `text` with its control strings, and parts of them at its ends, replaced by marks."""
        parts, position = [], 0
        for start, end, token in matcher.find(text):
            # White space that the token would swallow stays visible, so that templates can still trim it.
            before, after = text[start:end].split(token.text, 1)
            parts += [text[position:start], before, self.mark(token.text), after]
            position = end
        hidden = "".join(parts) + text[position:]
        return hidden if fragments is None else self._hide_ends(hidden, fragments)

    def _hide_ends(self, text: str, fragments: Fragments) -> str:
        if count := fragments.leading(text):
            text = self.mark(text[:count]) + text[count:]
        if count := fragments.trailing(text):
            text = text[:-count] + self.mark(text[-count:])
        return text

    def restore(self, text: str) -> str:
        """Return `text` with every mark replaced by what it stands for."""
        return _MARKS.sub(lambda match: self._text_of.get(match[0], match[0]), text) if self._text_of else text


def _printed_forms(character: str) -> tuple[str, str, str]:
    return character, f"\\U{ord(character):08x}", json.dumps(character)[1:-1]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
