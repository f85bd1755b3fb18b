"""Draw units as lines. Every line is at most `width` cells wide; nothing is cut, everything wraps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.segment import Segment
from rich.style import Style

from qlocal.chat.markdown import blocks
from qlocal.chat.markdown.blocks import Node, Unit
from qlocal.chat.markdown.code import code_lines
from qlocal.chat.markdown.inline import inline_spans
from qlocal.chat.markdown.latex import to_unicode
from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.table import Cell, table_lines
from qlocal.chat.markdown.wrap import Line, Ornament, line_width, wrap

# However deep things are nested, this much room stays for the text.
MIN_CELLS = 4
RULE_IN_LIST = 3


@dataclass(frozen=True)
class Frame:
    """Where something is drawn: the lines it came from, its room, and how deep it is in lists."""

    source_lines: list[str]
    width: int
    palette: Palette
    style: Style
    is_open: bool = False
    """More text may follow: code is lexed a line at a time."""
    depth: int = 0

    def narrower(self, cells: int) -> Frame:
        return replace(self, width=max(MIN_CELLS, self.width - cells))


def render_unit(unit: Unit, width: int, palette: Palette, *, is_open: bool) -> list[Line]:
    """Return the lines of a unit, without the blank one before it; `is_open` if it may still grow."""
    frame = Frame(unit.source_lines, width, palette, palette.text, is_open)
    return _block(unit.node, frame) if unit.marker is None else _item(unit.node, unit.marker, frame)


def _blocks(nodes: list[Node], frame: Frame, *, is_spaced: bool) -> list[Line]:
    """Draw blocks below each other, with a blank line between them; in lists only where the source has one."""
    lines: list[Line] = []
    for i, node in enumerate(nodes):
        if i and (is_spaced or blocks.is_blank(frame.source_lines[node.lines[0] - 1])):
            lines.append([])
        lines += _block(node, frame)
    return lines


def _block(node: Node, frame: Frame) -> list[Line]:
    match node.kind:
        case "heading":
            return _heading(node, frame)
        case "bullet_list" | "ordered_list":
            return _list(node, frame)
        case "blockquote":
            return _quote(node, frame)
        case "fence" | "code_block":
            return _code(node, frame)
        case "table":
            return _table(node, frame)
        case "math_block":
            return _formula(node, frame)
        case "hr":
            # In a list the frame may claim more cells than there are.
            return [[Segment("─" * (RULE_IN_LIST if frame.depth else frame.width), frame.palette.marker)]]
        case _:
            return wrap(inline_spans(blocks.inline_tokens(node), frame.palette, frame.style), frame.width)


def _heading(node: Node, frame: Frame) -> list[Line]:
    style = frame.style + frame.palette.heading
    lines = wrap(inline_spans(blocks.inline_tokens(node), frame.palette, style), frame.width)
    if node.token.tag == "h1":
        lines.append([Ornament("━" * max(line_width(line) for line in lines), style)])
    return lines


def _list(node: Node, frame: Frame) -> list[Line]:
    lines: list[Line] = []
    number = blocks.first_number(node)
    for i, item in enumerate(node.children):
        if i and blocks.is_blank(frame.source_lines[item.lines[0] - 1]):
            lines.append([])
        current = None if number is None else number + i
        lines += _item(item, blocks.item_marker(node, current, frame.depth), frame)
    return lines


def _item(node: Node, marker: str, frame: Frame) -> list[Line]:
    """Draw an item: its marker, and everything else to the right of it."""
    indent = len(marker) + 1
    inner = replace(frame.narrower(indent), depth=frame.depth + 1)
    lines = _blocks(node.children, inner, is_spaced=False) or [[]]
    first = Segment(marker + " ", frame.palette.marker)
    other = Ornament(" " * indent, frame.palette.text)
    return [[first if i == 0 else other, *line] if i == 0 or line else [] for i, line in enumerate(lines)]


def _quote(node: Node, frame: Frame) -> list[Line]:
    inner = replace(frame.narrower(2), style=frame.style + frame.palette.muted)
    bar = Ornament("▎ ", frame.palette.marker)
    return [[bar, *line] for line in _blocks(node.children, inner, is_spaced=True) or [[]]]


def _code(node: Node, frame: Frame) -> list[Line]:
    info = node.token.info.split()
    language = info[0] if info else ""
    is_open = frame.is_open and not _is_closed_fence(node)
    return code_lines(node.token.content, language, frame.width, frame.palette, is_open=is_open)


def _is_closed_fence(node: Node) -> bool:
    """A closed fence has two lines more than its content, an open one only one."""
    first, end = node.lines
    return node.kind == "fence" and end - first == len(node.token.content.splitlines()) + 2


def _formula(node: Node, frame: Frame) -> list[Line]:
    indent = Ornament("  ", frame.palette.text)
    lines = wrap([(to_unicode(node.token.content), frame.style + frame.palette.math)], frame.width - 2)
    return [[indent, *line] for line in lines]


def _table(node: Node, frame: Frame) -> list[Line]:
    return table_lines(table_rows(node, frame.style, frame.palette), frame.width, frame.palette)


def table_rows(node: Node, style: Style, palette: Palette) -> list[tuple[Cell, ...]]:
    """Return the cells of a table, its head first."""
    rows: list[tuple[Cell, ...]] = []
    for section in node.children:
        inner = style + (palette.strong if section.kind == "thead" else Style.null())
        rows += [tuple(_cell(cell, inner, palette) for cell in row.children) for row in section.children]
    return rows


def _cell(node: Node, style: Style, palette: Palette) -> Cell:
    align = str(node.token.attrs.get("style", "")).rpartition(":")[2] or "left"
    return Cell(tuple(inline_spans(blocks.inline_tokens(node), palette, style)), align)
