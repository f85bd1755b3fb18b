"""Markdown that grows: finished units are drawn once, only the last one again with every new piece of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qlocal.chat.markdown.blocks import Position, Unit, split
from qlocal.chat.markdown.open_table import OpenTable, open_table
from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.render import render_unit
from qlocal.chat.markdown.wrap import Line


@dataclass(frozen=True)
class Block:
    """A top-level block of a text: the lines it is drawn on, and what one gets by copying it."""

    first_line: int
    num_lines: int
    source: str
    """As it was written; of code what stands between the fences."""
    is_code: bool = False

    @property
    def end_line(self) -> int:
        """The line after its last."""
        return self.first_line + self.num_lines


def render_markdown(source: str, width: int, palette: Palette) -> tuple[list[Line], list[Block]]:
    """Return the lines of a whole text, and its blocks."""
    return _render(source, split(source, Position()), width, palette, is_open=False)


class MarkdownStream:
    """The lines of a text that is still being written. `lines` is always what the whole text so far gives."""

    def __init__(self, width: int, palette: Palette) -> None:
        self.width = width
        self.palette = palette
        self.frozen: list[Line] = []
        """Lines that no further text can change."""
        self.open: list[Line] = []
        self._frozen_blocks: list[Block] = []
        self._open_blocks: list[Block] = []
        self._tail = ""
        self._position = Position()
        self._table: OpenTable | None = None

    @property
    def lines(self) -> list[Line]:
        """All lines, the frozen ones first."""
        return self.frozen + self.open

    @property
    def blocks(self) -> list[Block]:
        """All blocks; the last one may still grow."""
        return _joined(self._frozen_blocks, self._open_blocks, len(self.frozen), self._position.is_inside)

    def append(self, text: str) -> None:
        """Add a piece of the text and draw again what it can change."""
        self._tail += text
        if self._table is not None and (lines := self._table.lines_of(self._tail)) is not None:
            gap = self._table.gap
            self.open = gap + lines
            self._open_blocks = [Block(len(gap), len(lines), self._tail.strip("\n"))]
            return
        source = self._tail
        units = self._freeze(split(source, self._position))
        self.open, self._open_blocks = _render(source, units, self.width, self.palette, is_open=True)
        is_table = self._tail == source and len(units) == 1 and units[0].node.kind == "table"
        self._table = open_table(source, units[0], self.width, self.palette) if is_table else None

    def finish(self) -> None:
        """Say that nothing follows: the last block is drawn as complete."""
        self._keep(self._tail, split(self._tail, self._position))
        self.open, self._open_blocks, self._tail, self._table = [], [], "", None

    def _freeze(self, units: list[Unit]) -> list[Unit]:
        """Draw for good what no further text can change, and return the units that stay open.

        That is all but the last unit, and but the last two where half a line makes it one, and may still join it to
        the one above: `#` is a heading of its own, while `#tag` goes on with the paragraph; `|--` under `| a |` makes
        that a table, while `|--|--|` does not.
        """
        if not units:
            return units
        lines = self._tail.split("\n")
        made_by = units[-1].first_line + (units[-1].node.kind == "table")
        num_open = 2 if made_by == len(lines) - 1 else 1
        done, still_open = units[:-num_open], units[-num_open:]
        if done:
            start = sum(len(line) + 1 for line in lines[: still_open[0].first_line])
            self._keep(self._tail[:start], done)
            self._tail = self._tail[start:]
            self._position = still_open[0].position
        return still_open

    def _keep(self, source: str, units: list[Unit]) -> None:
        lines, blocks = _render(source, units, self.width, self.palette, is_open=False)
        self._frozen_blocks = _joined(self._frozen_blocks, blocks, len(self.frozen), self._position.is_inside)
        self.frozen += lines


def _render(
    source: str, units: Sequence[Unit], width: int, palette: Palette, *, is_open: bool
) -> tuple[list[Line], list[Block]]:
    """Draw units below each other; `is_open` if the last of them may still grow. The items of a list are one block."""
    lines: list[Line] = []
    blocks: list[Block] = []
    source_lines = source.split("\n")
    for i, unit in enumerate(units):
        is_last = i == len(units) - 1
        lines += [[]] if unit.blank_before else []
        drawn = render_unit(unit, width, palette, is_open=is_open and is_last)
        end = len(source_lines) if is_last else units[i + 1].first_line
        block = _block(unit, len(lines), len(drawn), source_lines[unit.first_line : end])
        lines += drawn
        blocks = _joined(blocks, [block], 0, bool(blocks) and unit.position.is_inside)
    return lines, blocks


def _block(unit: Unit, first_line: int, num_lines: int, source_lines: Sequence[str]) -> Block:
    if unit.marker is None and unit.node.kind == "fence":
        return Block(first_line, num_lines, unit.node.token.content, is_code=True)
    return Block(first_line, num_lines, "\n".join(source_lines).rstrip("\n"))


def _joined(before: list[Block], after: list[Block], shift: int, goes_on: bool) -> list[Block]:
    """Put the blocks of a later part behind those before it; the first goes on with the last if it is its list."""
    moved = [replace(block, first_line=block.first_line + shift) for block in after]
    if not goes_on or not before or not moved:
        return before + moved
    last, first = before[-1], moved[0]
    whole = Block(last.first_line, first.end_line - last.first_line, f"{last.source}\n{first.source}")
    return [*before[:-1], whole, *moved[1:]]
