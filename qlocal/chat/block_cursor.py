"""A cursor that walks the blocks of a conversation: paragraphs, lists, code, thoughts. No widget."""

from __future__ import annotations

from typing import NamedTuple

from qlocal.chat.drawn_log import DrawnLog
from qlocal.chat.entry import Entry


class BlockSpan(NamedTuple):
    """Where the cursor is: which entry, and which of its lines."""

    entry_idx: int
    first_line: int
    end_line: int


class BlockCursor:
    """Stands on one block, or nowhere. It goes with its entry when others come before or behind."""

    def __init__(self, log: DrawnLog) -> None:
        self._log = log
        self._entry_id: int | None = None
        self._entry_idx = 0
        self._block_idx = 0

    def leave(self) -> None:
        """Stand nowhere."""
        self._entry_id = None

    @property
    def entry_idx(self) -> int | None:
        """Which entry the cursor is in; None where it stands nowhere, or its entry is gone."""
        if self._entry_id is None:
            return None
        entries = self._log.entries
        if self._entry_idx >= len(entries) or entries[self._entry_idx].entry_id != self._entry_id:
            found = self._log.idx_of(self._entry_id)
            if found is None:
                self._entry_id = None
                return None
            self._entry_idx = found
        return self._entry_idx

    @property
    def entry(self) -> Entry | None:
        """The entry that the cursor is in."""
        idx = self.entry_idx
        return None if idx is None else self._log.entries[idx]

    @property
    def span(self) -> BlockSpan | None:
        """The lines of the block, once its entry is drawn."""
        idx = self.entry_idx
        if idx is None or (view := self._log.drawn(idx)) is None or not (blocks := view.blocks):
            return None
        block = blocks[min(self._block_idx, len(blocks) - 1)]
        return BlockSpan(idx, block.first_line, block.end_line)

    @property
    def source(self) -> str | None:
        """What the block was written as; of code what stands between the fences."""
        idx = self.entry_idx
        if idx is None or not (blocks := self._log.view(idx).blocks):
            return None
        return blocks[min(self._block_idx, len(blocks) - 1)].source

    def put(self, entry_idx: int, line: int) -> None:
        """Stand on the block at a line of an entry, or on the one above that line."""
        blocks = self._log.view(entry_idx).blocks
        above = [i for i, block in enumerate(blocks) if block.first_line <= line]
        self._stand(entry_idx, above[-1] if above else 0)

    def step(self, by: int) -> None:
        """Go to the block before (-1) or after (1); from nowhere to the last one."""
        idx = self.entry_idx
        if idx is None:
            self._enter(len(self._log) - 1, from_below=True)
            return
        block = min(self._block_idx, len(self._log.view(idx).blocks) - 1) + by
        if 0 <= block < len(self._log.view(idx).blocks):
            self._block_idx = block
        else:
            self._enter(idx + by, from_below=by < 0)

    def step_entry(self, by: int) -> None:
        """Go to the first block of the message before or after; from nowhere into the last one."""
        idx = self.entry_idx
        self._enter(len(self._log) - 1 if idx is None else idx + by, from_below=False)

    def _enter(self, idx: int, *, from_below: bool) -> None:
        if 0 <= idx < len(self._log):
            self._stand(idx, max(0, len(self._log.view(idx).blocks) - 1) if from_below else 0)

    def _stand(self, entry_idx: int, block_idx: int) -> None:
        self._entry_idx, self._block_idx = entry_idx, block_idx
        self._entry_id = self._log.entries[entry_idx].entry_id
