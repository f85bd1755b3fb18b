"""Long texts as chips: one line in the editor stands for a paste or a file, and becomes its content when it is sent.

A chip is found by its kind and number, so that its counts may change while it stands in a text. Pure text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePath

from qlocal.clean import clean_line

MAX_PASTED_CHARS = 800
MAX_PASTED_LINES = 2
MAX_NAME_CHARS = 40

_CHIP = re.compile(r"\[(?:Pasted text|File) #(\d+)[^\]\n]*\]")


@dataclass(frozen=True)
class Attachment:
    """A text that a chip stands for. name: the file's, None for a paste; num_tokens: None until it was counted."""

    number: int
    content: str
    name: str | None = None
    num_tokens: int | None = None

    @property
    def chip(self) -> str:
        """What stands in the editor. The same in every language: it is part of a text that is kept as a draft."""
        kind = "Pasted text" if self.name is None else "File"
        name = "" if self.name is None else f" {_short(self.name)}"
        tokens = "" if self.num_tokens is None else f", {self.num_tokens:,} tokens"
        return f"[{kind} #{self.number}{name} +{self.content.count(chr(10)) + 1:,} lines{tokens}]"

    @property
    def sent(self) -> str:
        """What is sent: a paste as it is, a file with its name and fenced."""
        if self.name is None:
            return self.content
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", self.content)), default=0))
        language = PurePath(self.name).suffix.removeprefix(".")
        end = "" if self.content.endswith("\n") else "\n"
        return f"{self.name}:\n{fence}{language}\n{self.content}{end}{fence}"


class Attachments:
    """The chips of this run of the chat. Numbers are never used twice, so that recalled prompts keep theirs."""

    def __init__(self) -> None:
        self._by_number: dict[int, Attachment] = {}

    def add(self, content: str, name: str | None = None) -> Attachment:
        """Take a text in and give it the next number."""
        added = Attachment(len(self._by_number) + 1, content, name)
        self._by_number[added.number] = added
        return added

    def count(self, number: int, num_tokens: int) -> Attachment:
        """Note how many tokens one has; returns it with its new chip."""
        counted = replace(self._by_number[number], num_tokens=num_tokens)
        self._by_number[number] = counted
        return counted

    def expand(self, text: str) -> str:
        """Return what is sent of a text: every chip becomes its content."""
        return _CHIP.sub(lambda found: self._sent(found), text)

    def without_chips(self, text: str) -> str:
        """Return what the user has typed of a text."""
        return _CHIP.sub(lambda found: "" if int(found[1]) in self._by_number else found[0], text)

    def within(self, text: str) -> list[Attachment]:
        """Return the attachments whose chips stand in a text, in its order."""
        numbers = (int(found[1]) for found in _CHIP.finditer(text))
        return [self._by_number[number] for number in numbers if number in self._by_number]

    def span_at(self, line: str, column: int, *, is_edge_inside: str = "") -> tuple[int, int] | None:
        """Return where the chip lies that a place of a line is inside of. is_edge_inside: "left" or "right" counts
        the place just before, or just behind it."""
        for found in _CHIP.finditer(line):
            if int(found[1]) not in self._by_number:
                continue
            start = found.start() - (is_edge_inside == "left")
            end = found.end() + (is_edge_inside == "right")
            if start < column < end:
                return found.span()
        return None

    def _sent(self, found: re.Match[str]) -> str:
        attachment = self._by_number.get(int(found[1]))
        return found[0] if attachment is None else attachment.sent


def is_long(pasted: str) -> bool:
    """Return whether a paste is long enough for a chip."""
    return len(pasted) > MAX_PASTED_CHARS or pasted.count("\n") >= MAX_PASTED_LINES


def _short(name: str) -> str:
    plain = re.sub(r"[\[\]]", "_", clean_line(name))
    return plain if len(plain) <= MAX_NAME_CHARS else "…" + plain[1 - MAX_NAME_CHARS :]
