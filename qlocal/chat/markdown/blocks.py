"""Split Markdown into units: top-level blocks, and the items of top-level lists.

A unit depends on its own lines and on where it stands (`Position`), on nothing that comes later. That is what
lets a stream freeze every unit but the last. Two rules of CommonMark are given up for it: reference links
(a definition at the end would change a paragraph at the start) and loose lists (a blank line at the end would
space out the items at the start): here a blank line separates the two items between which it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from markdown_it import MarkdownIt
from markdown_it.token import Token

from qlocal.chat.markdown.math_rules import enable_math

_PARSER = enable_math(
    MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable(["reference"])
)


@dataclass(frozen=True)
class Node:
    """A token with what is between it and its closing token."""

    token: Token
    children: list[Node] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The token's type without `_open`."""
        return self.token.type.removesuffix("_open")

    @property
    def lines(self) -> tuple[int, int]:
        """First line and the line after the last, in the text that was parsed."""
        assert self.token.map is not None, "markdown-it gives every block its lines"
        return self.token.map[0], self.token.map[1]


@dataclass(frozen=True)
class Position:
    """What a unit must know of those before it: a list that goes on, with its mark and its next number."""

    is_first: bool = True
    has_gap: bool = False
    """A blank line stands directly before the unit."""
    list_mark: str | None = None
    next_number: int | None = None
    is_inside: bool = False
    """The unit here is one more item of that list."""


@dataclass(frozen=True)
class Unit:
    """One block, or one item of a top-level list (then `marker` is its bullet or number)."""

    node: Node
    source_lines: list[str]
    """What was parsed; the node's line numbers count here."""
    first_line: int
    """Where the unit begins in the text given to `split`."""
    position: Position
    blank_before: bool
    marker: str | None = None


BULLETS = "•◦▪"


def split(source: str, position: Position) -> list[Unit]:
    """Return the units of a text that begins at `position`."""
    # An item that goes on is read differently from one that begins a list (which might be a table instead),
    # so the parser is shown an item before it. Its content is so far right that nothing can belong to it.
    context = [f"{position.list_mark}    #"] if position.is_inside else []
    lines = context + source.split("\n")
    units: list[Unit] = []
    for node in _nest(iter(_PARSER.parse("\n".join(lines)))):
        for member in node.children if node.kind in ("bullet_list", "ordered_list") else [node]:
            first_line = member.lines[0] - len(context)
            if first_line < 0:
                continue
            has_gap = is_blank(lines[member.lines[0] - 1]) if first_line else position.has_gap
            here = replace(position, has_gap=has_gap)
            marker, is_inside, position = _place(node, member, here)
            blank_before = has_gap if is_inside else not here.is_first
            here = replace(here, is_inside=is_inside)
            units.append(Unit(member, lines, first_line, here, blank_before, marker))
    return units


def is_blank(line: str) -> bool:
    """Whether a line only separates: empty, or nothing but quote marks."""
    return not line.strip(" \t>")


def item_marker(list_node: Node, number: int | None, depth: int) -> str:
    """Return what stands before an item: a bullet by depth, or its number with the list's own mark."""
    if number is None:
        return BULLETS[min(depth, len(BULLETS) - 1)]
    return f"{number}{list_node.token.markup}"


def first_number(list_node: Node) -> int | None:
    """Return the number of a list's first item; None for bullets."""
    return int(list_node.token.attrs.get("start", 1)) if list_node.kind == "ordered_list" else None


def _place(block: Node, member: Node, here: Position) -> tuple[str | None, bool, Position]:
    """Return an item's marker and whether it goes on with the list before it; and the position behind it."""
    if member is block:
        return None, False, Position(is_first=False)
    mark = ("1" if block.kind == "ordered_list" else "") + block.token.markup
    goes_on = here.list_mark == mark
    number = here.next_number if goes_on else first_number(block)
    behind = Position(False, False, mark, None if number is None else number + 1)
    return item_marker(block, number, 0), goes_on, behind


def _nest(tokens: Iterator[Token]) -> list[Node]:
    nodes: list[Node] = []
    for token in tokens:
        if token.nesting < 0:
            break
        nodes.append(Node(token, _nest(tokens) if token.nesting > 0 else []))
    return nodes


def inline_tokens(node: Node) -> Sequence[Token]:
    """Return the inline tokens of a paragraph, heading or cell."""
    inline = next((child.token for child in node.children if child.token.type == "inline"), None)
    return inline.children or [] if inline is not None else []
