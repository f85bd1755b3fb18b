"""A table at the end of a text that streams: only its new rows are read, as those before them are complete."""

from __future__ import annotations

from qlocal.chat.markdown.blocks import Unit, split
from qlocal.chat.markdown.palette import Palette
from qlocal.chat.markdown.render import table_rows
from qlocal.chat.markdown.table import Row, table_lines
from qlocal.chat.markdown.wrap import Line

_HEAD_LINES = 2


def open_table(source: str, unit: Unit, width: int, palette: Palette) -> OpenTable | None:
    """Return the table that `unit` is in `source`, None while its head is not complete."""
    has_head = source.count("\n") >= unit.first_line + _HEAD_LINES
    return OpenTable(source, unit, width, palette) if has_head else None


class OpenTable:
    """Begins with the text that it was seen in first; `lines_of` is asked with ever more of it."""

    def __init__(self, source: str, unit: Unit, width: int, palette: Palette) -> None:
        self._head = source.split("\n")[unit.first_line :][:_HEAD_LINES]
        self._num_left_out = unit.first_line + _HEAD_LINES
        self._position = unit.position
        self._width = width
        self._palette = palette
        self._rows: list[Row] = []
        """Those that are complete, without the head."""
        self.gap: list[Line] = [[]] if unit.blank_before else []
        """What stands between the table and the block before it."""

    def lines_of(self, source: str) -> list[Line] | None:
        """Return the lines of the table so far; None where the text has gone on with something else."""
        new_lines = source.split("\n")[self._num_left_out :]
        units = split("\n".join([*self._head, *new_lines]), self._position)
        if len(units) != 1 or units[0].node.kind != "table":
            return None
        head, *body = table_rows(units[0].node, self._palette.text, self._palette)
        num_complete = len(new_lines) - 1
        rows = [head, *self._rows, *body]
        # Every line is a row, until a blank one has ended the table.
        if len(body) >= num_complete:
            self._rows += body[:num_complete]
            self._num_left_out += num_complete
        return table_lines(rows, self._width, self._palette)
