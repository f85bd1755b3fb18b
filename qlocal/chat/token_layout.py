"""Tokens as lines of a terminal: which piece of which token stands where. Pure text."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from qlocal.clean import clean_line

LINE_END = "⏎"
BLANK = "·"


@dataclass(frozen=True)
class Piece:
    """A piece of a token on one line, from column `start` on."""

    token_idx: int
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + cell_len(self.text)


@dataclass(frozen=True)
class TokenLayout:
    """All lines, and the line on which each token begins."""

    lines: list[list[Piece]]
    line_of: list[int]

    def token_at(self, line: int, column: int) -> int | None:
        """Return the token at a place, the nearest one before it on its line where there is none."""
        if not 0 <= line < len(self.lines) or not self.lines[line]:
            return None
        before = [piece for piece in self.lines[line] if piece.start <= column]
        return (before[-1] if before else self.lines[line][0]).token_idx


def shown_texts(raws: Sequence[bytes]) -> list[str]:
    """Return what each token adds to the text: a character that several share stands with the last of them, the others
    show their bytes as nothing but a dot, so that every token can be seen."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(raw) for raw in raws]
    return [text if text or not raw else BLANK for text, raw in zip(texts, raws, strict=True)]


def lay_out(texts: Sequence[str], width: int) -> TokenLayout:
    """Place tokens on lines of `width` cells. A line end is shown and ends the line; a token that does not fit begins a
    new one, and is cut only where it is wider than a line."""
    lines: list[list[Piece]] = [[]]
    line_of: list[int] = []
    column = 0
    for idx, text in enumerate(texts):
        parts = text.replace("\r\n", "\n").split("\n")
        for number, part in enumerate(parts):
            shown = _shown(part) + (LINE_END if number < len(parts) - 1 else "")
            if column and column + cell_len(shown) > width:
                lines.append([])
                column = 0
            if number == 0:
                line_of.append(len(lines) - 1)
            for cut in _cut(shown, width - column, width):
                if column and column + cell_len(cut) > width:
                    lines.append([])
                    column = 0
                lines[-1].append(Piece(idx, cut, column))
                column += cell_len(cut)
            if number < len(parts) - 1:
                lines.append([])
                column = 0
    return TokenLayout(lines, line_of)


def visible(text: str) -> str:
    """Return a token by itself, with its blanks and line ends to be seen."""
    shown = clean_line(text.replace("\n", LINE_END).replace("\t", "→"))
    return shown.replace(" ", BLANK) if shown.strip() != shown or not shown else shown


def _shown(part: str) -> str:
    """Return a part without line ends as it is shown: a mark that joins the character before it cannot stand alone."""
    shown = clean_line(part.replace("\t", "    "))
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def _cut(text: str, room: int, width: int) -> list[str]:
    """Cut what is wider than a line."""
    if cell_len(text) <= max(room, width):
        return [text] if text else []
    cuts = [""]
    for char in text:
        if cuts[-1] and cell_len(cuts[-1] + char) > width:
            cuts.append("")
        cuts[-1] += char
    return cuts
