"""All entries of a transcript with their heights, and the drawings of those near the view. No widget, no scrolling.

Most heights are estimates until an entry is drawn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from qlocal.chat.entry import Entry, Look
from qlocal.chat.entry_view import EntryView, estimated_height
from qlocal.chat.line_index import LineIndex

MAX_VIEWS = 256


class DrawnLog:
    """Entries below each other at one width and in one look; without a look nothing can be drawn."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.index = LineIndex()
        self.width = 0
        self.look: Look | None = None
        self._views: OrderedDict[int, EntryView] = OrderedDict()
        self._unfolded: set[int] = set()

    def __len__(self) -> int:
        return len(self.entries)

    def show(self, entries: Sequence[Entry]) -> None:
        """Replace the entries; those at the beginning that are the same as before keep their drawings."""
        same = 0
        for old, new in zip(self.entries, entries, strict=False):
            if old is not new and old != new:
                break
            same += 1
        self.entries[same:] = entries[same:]
        self.index.cut(same)
        for idx in [idx for idx in self._views if idx >= same]:
            del self._views[idx]
        for entry in entries[same:]:
            self.index.append(estimated_height(entry, self.width))

    def append(self, entry: Entry) -> None:
        """Add an entry at the end."""
        self.entries.append(entry)
        self.index.append(estimated_height(entry, self.width))

    def replace(self, idx: int, entry: Entry) -> None:
        """Put another entry in the place of one."""
        self.entries[idx] = entry
        self._views.pop(idx, None)

    def extend_last(self, text: str) -> None:
        """Add text to the last entry, which streams."""
        idx = len(self.entries) - 1
        self.view(idx).append(text)
        self.entries[idx] = replace(self.entries[idx], text=self.entries[idx].text + text)

    def set_width(self, width: int) -> None:
        """Forget all drawings and exact heights."""
        self.width = width
        self._views.clear()
        self.index = LineIndex(estimated_height(entry, width) for entry in self.entries)

    def set_look(self, look: Look) -> None:
        """Forget all drawings; the heights stay."""
        self.look = look
        self._views.clear()

    def fold(self, idx: int, *, is_folded: bool) -> None:
        """Hide or show what a model thought."""
        entry_id = self.entries[idx].entry_id
        (self._unfolded.discard if is_folded else self._unfolded.add)(entry_id)
        self._views.pop(idx, None)

    def is_folded(self, idx: int) -> bool:
        """Whether the thought of an entry is hidden, if it has one."""
        return self.entries[idx].entry_id not in self._unfolded

    def is_drawn(self, idx: int) -> bool:
        """Whether the height of an entry is exact."""
        return idx in self._views

    def view(self, idx: int) -> EntryView:
        """Return the drawing of an entry."""
        view = self._views.get(idx)
        if view is None:
            assert self.look is not None, "drawn once there are colours"
            is_unfolded = not self.is_folded(idx)
            view = self._views[idx] = EntryView(self.entries[idx], self.width, self.look, is_unfolded=is_unfolded)
            if len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end(idx)
        return view

    def drawn(self, idx: int) -> EntryView | None:
        """Return the drawing of an entry if there is one."""
        return self._views.get(idx)

    def draw(self, idx: int) -> int:
        """Draw an entry if need be, and return its exact height."""
        height = self.view(idx).height
        self.index.set_height(idx, height)
        return height

    def idx_of(self, entry_id: int) -> int | None:
        """Return where an entry stands, None if it is not shown."""
        return next((idx for idx, entry in enumerate(self.entries) if entry.entry_id == entry_id), None)
