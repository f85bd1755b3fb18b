"""The conversation as one scrollable log on Textual's line API, for any number of messages.

Only what is near the view is drawn; all other heights are estimates, corrected as the reader comes by without
moving what is being read. Knows entries, not where they come from.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer

from qlocal.chat.entry_view import Entry, EntryView, Look, estimated_height
from qlocal.chat.line_index import LineIndex
from qlocal.chat.messages import LinesBelow
from qlocal.chat.widgets.look import look_of

FLUSH_S = 1 / 15
"""A streaming answer is drawn again at most so often."""
MAX_FLUSH_SHARE = 0.2
"""Of the time, at most: a long table is measured anew with every row, and then drawn less often."""
MAX_VIEWS = 256


class Transcript(ScrollView, can_focus=True):
    """Entries below each other. Follows the end while the reader is there, and stays put otherwise."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._entries: list[Entry] = []
        self._index = LineIndex()
        self._views: OrderedDict[int, EntryView] = OrderedDict()
        self._look: Look | None = None
        self._width = 0
        self._follows_end = True
        self._is_settling = False
        self._new_lines = 0
        self._unwritten: list[str] = []
        self._flush_timer: Timer | None = None
        self._flush_cost_s = 0.0

    @property
    def entries(self) -> list[Entry]:
        """The entries that are shown, first to last."""
        return self._entries

    @property
    def follows_end(self) -> bool:
        """Whether new text scrolls the log."""
        return self._follows_end

    def show(self, entries: Iterable[Entry]) -> None:
        """Replace everything and go to the end."""
        self._unwritten.clear()
        self._entries = list(entries)
        self._follows_end = True
        self._estimate()

    def add(self, entry: Entry) -> None:
        """Add an entry at the end and go there."""
        self.flush()
        self._entries.append(entry)
        self._index.append(estimated_height(entry, self._width))
        self.go_to_end()

    def update_last(self, entry: Entry) -> None:
        """Replace the last entry: its answer is finished, or has another note."""
        self._unwritten.clear()
        idx = len(self._entries) - 1
        self._entries[idx] = entry
        self._views.pop(idx, None)
        self._measure(idx)
        self._settle()

    def append_text(self, text: str) -> None:
        """Add text to the last entry, which streams; it is drawn within a fifteenth of a second."""
        self._unwritten.append(text)
        if self._flush_timer is None:
            self._flush_timer = self.set_timer(max(FLUSH_S, self._flush_cost_s / MAX_FLUSH_SHARE), self.flush)

    def flush(self) -> None:
        """Draw the text that has come in since the last time."""
        if self._flush_timer is not None:
            self._flush_timer.stop()
            self._flush_timer = None
        if not self._unwritten:
            return
        started_s = time.thread_time()
        text = "".join(self._unwritten)
        self._unwritten.clear()
        idx = len(self._entries) - 1
        entry = self._entries[idx]
        self._view(idx).append(text)
        self._entries[idx] = replace(entry, text=entry.text + text)
        self._measure(idx)
        self._settle()
        self._flush_cost_s = time.thread_time() - started_s

    def go_to_end(self) -> None:
        """Go to the last line, and follow it from now on."""
        self._follows_end = True
        self._settle()

    def render_line(self, y: int) -> Strip:
        """Return a line of the view."""
        width, line = self.size.width, self.scroll_offset.y + y
        if not self._entries or line >= self._index.total:
            return Strip.blank(width, self.rich_style)
        idx, inner = self._index.locate(line)
        view = self._views.get(idx)
        strip = view.strip(inner) if view is not None and inner < view.height else Strip([])
        return strip.extend_cell_length(width).crop(0, width).apply_style(self.rich_style)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if not self._is_settling:
            self._follows_end = new_value >= self.max_scroll_y
            self._settle()

    def scroll_to(self, x: float | None = None, y: float | None = None, **options: Any) -> None:
        """Scroll at once: an animation would aim at a line whose number changes as heights become exact."""
        super().scroll_to(x, y, **{**options, "animate": False})

    def on_resize(self, event: Resize) -> None:
        if event.size.width != self._width:
            self._width = event.size.width
            self._estimate()
        else:
            self._settle()

    def notify_style_update(self) -> None:
        """Draw everything again in the colours of a new theme."""
        super().notify_style_update()
        if self._look is not None and (look := look_of(self.app.theme_variables)) != self._look:
            self._look = look
            self._views.clear()
            self._settle()

    def _estimate(self) -> None:
        """Forget all drawings; keep the reader at the same entry."""
        anchor = None if self._follows_end or not len(self._index) else self._index.locate(self.scroll_offset.y)
        self._views.clear()
        self._index = LineIndex(estimated_height(entry, self._width) for entry in self._entries)
        if anchor is not None:
            self._draw_at(anchor[0])
            self._move_to(self._index.start(anchor[0]) + min(anchor[1], self._index.height(anchor[0]) - 1))
        self._settle()

    def _settle(self) -> None:
        """Draw what is in view, and put the view where the reader is."""
        if self._width == 0:
            return
        height = self.size.height
        if not self._entries:
            self._move_to(0)
        elif self._follows_end:
            self._draw_up_from_end(height)
            self._move_to(self._index.total - height)
        else:
            self._move_to(self._draw_down_from(self.scroll_offset.y, height))
        if self._follows_end and self._new_lines:
            self._new_lines = 0
            self.post_message(LinesBelow(0))
        self.refresh()

    def _draw_up_from_end(self, height: int) -> None:
        idx = len(self._entries) - 1
        while height > 0 and idx >= 0:
            self._draw_at(idx)
            height -= self._index.height(idx)
            idx -= 1

    def _draw_down_from(self, line: int, height: int) -> int:
        """Draw what is in view from `line` on; return the line at which the same text is now."""
        idx, inner = self._index.locate(line)
        if idx not in self._views:
            # Coming from below one reads its last lines first: count from the end, which is what stays in place.
            from_end = self._index.height(idx) - inner
            self._draw_at(idx)
            inner = max(0, self._index.height(idx) - from_end)
        below = inner + height
        line = self._index.start(idx) + inner
        while below > 0 and idx < len(self._entries):
            self._draw_at(idx)
            below -= self._index.height(idx)
            idx += 1
        return line

    def _draw_at(self, idx: int) -> None:
        self._index.set_height(idx, self._view(idx).height)

    def _measure(self, idx: int) -> None:
        """Take over the height of an entry that changed, and count what it grew below the reader."""
        before = self._index.height(idx)
        self._draw_at(idx)
        grown = self._index.height(idx) - before
        if not self._follows_end and grown > 0:
            self._new_lines += grown
            self.post_message(LinesBelow(self._new_lines))

    def _view(self, idx: int) -> EntryView:
        view = self._views.get(idx)
        if view is None:
            if self._look is None:
                self._look = look_of(self.app.theme_variables)
            view = self._views[idx] = EntryView(self._entries[idx], self._width, self._look)
            if len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
        self._views.move_to_end(idx)
        return view

    def _move_to(self, line: int) -> None:
        """Set the size of the log and its position, without taking it for the reader's own scrolling."""
        self._is_settling = True
        try:
            self.virtual_size = Size(self._width, self._index.total)
            super().scroll_to(y=max(0, line), animate=False, force=True, immediate=True)
        finally:
            self._is_settling = False
