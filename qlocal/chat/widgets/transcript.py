"""The conversation as one scrollable log on Textual's line API, for any number of messages.

Only what is near the view is drawn; all other heights are estimates, corrected as the reader comes by without
moving what is being read. Knows entries, not where they come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.segment import Segment
from rich.style import Style
from textual.events import Click, Resize
from textual.geometry import Offset, Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer

from qlocal.chat.block_cursor import BlockCursor
from qlocal.chat.drawn_log import DrawnLog
from qlocal.chat.entry import Entry
from qlocal.chat.messages import LinesBelow
from qlocal.chat.selection import row
from qlocal.chat.widgets import log_selection
from qlocal.chat.widgets.finished import Finish, FinishedLines
from qlocal.chat.widgets.look import look_of

FLUSH_S = 1 / 15
"""A streaming answer is drawn again at most so often."""
MAX_FLUSH_SHARE = 0.2
"""Of the time, at most: a long table is measured anew with every row, and then drawn less often."""


class Transcript(ScrollView, can_focus=True):
    """Entries below each other. Follows the end while the reader is there, and stays put otherwise."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._log = DrawnLog()
        self._finished = FinishedLines()
        self._cursor = BlockCursor(self._log)
        self._follows_end = True
        self._is_settling = False
        self._new_lines = 0
        self._unwritten: list[str] = []
        self._flush_timer: Timer | None = None
        self._flush_cost_s = 0.0

    @property
    def entries(self) -> list[Entry]:
        """The entries that are shown, first to last."""
        return self._log.entries

    @property
    def follows_end(self) -> bool:
        """Whether new text scrolls the log."""
        return self._follows_end

    # What is shown.

    def show(self, entries: Iterable[Entry]) -> None:
        """Replace everything and go to the end. What is the same as before is not drawn again."""
        self._unwritten.clear()
        self._log.show(list(entries))
        self._follows_end = True
        self._settle()

    def add(self, entry: Entry) -> None:
        """Add an entry at the end and go there."""
        self.flush()
        self._log.append(entry)
        self.go_to_end()

    def update_last(self, entry: Entry) -> None:
        """Replace the last entry: its answer is finished, or has another note."""
        self._unwritten.clear()
        idx = len(self._log) - 1
        self._log.replace(idx, entry)
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
        if not self._unwritten or not self._can_draw():
            return
        started_s = time.thread_time()
        text = "".join(self._unwritten)
        self._unwritten.clear()
        self._log.extend_last(text)
        self._measure(len(self._log) - 1)
        self._settle()
        self._flush_cost_s = time.thread_time() - started_s

    # Where the reader is.

    def go_to_end(self) -> None:
        """Go to the last line, and follow it from now on."""
        self._follows_end = True
        self._settle()

    def go_to_entry(self, entry_id: int) -> bool:
        """Put an entry at the top of the view, with the cursor on it; False if it is not shown."""
        idx = self._log.idx_of(entry_id)
        if idx is None or not self._can_draw():
            return False
        self._cursor.put(idx, 0)
        self._follows_end = False
        self._log.draw(idx)
        self._move_to(self._log.index.start(idx))
        self._settle()
        return True

    # The cursor on a block.

    @property
    def cursor_entry(self) -> Entry | None:
        """The message that the cursor is in, None where there is no cursor."""
        return self._cursor.entry

    @property
    def cursor_source(self) -> str | None:
        """What the block under the cursor was written as, code without its fences."""
        return self._cursor.source

    def last_code(self) -> str | None:
        """Return the code that was written last, without its fences; None where there is none in the last answer."""
        if not self._log.entries or not self._can_draw():
            return None
        blocks = self._log.view(len(self._log) - 1).blocks
        return next((block.source for block in reversed(blocks) if block.is_code), None)

    def move_cursor(self, step: int, *, by_entry: bool = False) -> None:
        """Go to the block before or after, or to the message before or after, and bring it into view."""
        if not self._log.entries or not self._can_draw():
            return
        (self._cursor.step_entry if by_entry else self._cursor.step)(step)
        self._show_cursor()

    def release(self) -> None:
        """Take away the cursor and what is selected."""
        self._cursor.leave()
        self.screen.clear_selection()
        self.refresh()

    def toggle_thought(self) -> bool:
        """Unfold or fold the thought of the message under the cursor, else of the last that has one; False if none."""
        idx = self._cursor.entry_idx
        candidates = range(len(self._log) - 1, -1, -1) if idx is None else [idx]
        found = next((i for i in candidates if self._has_thought(i)), None)
        if found is None:
            return False
        self._toggle_fold(found)
        return True

    # Drawing.

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return lines of the view as the terminal gets them."""
        if self.styles.gutter != self.styles.padding:  # a border is Textual's to draw
            return super().render_lines(crop)
        filters, (_, background) = tuple(self.get_line_filters()), self.background_colors
        paper = Style(bgcolor=background.rich_color)
        finish = Finish(filters, background, paper, self.styles.padding.left, crop.column_span)
        first, width, style = self.scroll_offset.y, self.size.width, self.rich_style
        return self._finished.of([self._line(first + y, width, style) for y in crop.line_range], finish)

    def render_line(self, y: int) -> Strip:
        """Return a line of the view."""
        return self._line(self.scroll_offset.y + y, self.size.width, self.rich_style)

    def _line(self, line: int, width: int, base: Style) -> Strip:
        """Return a line of the log. base: of cells without text."""
        if not self._log.entries or line >= self._log.index.total:
            return Strip.blank(width, base)
        idx, inner = self._log.index.locate(line)
        view = self._log.drawn(idx)
        if view is None or inner >= view.height:
            return Strip.blank(width, base)
        strip = view.strip(inner)
        if (selection := self.text_selection) is not None:
            style = self.screen.get_component_rich_style("screen--selection")
            strip = log_selection.highlight(strip, view.lines[inner], selection.get_span(row(idx, inner)), style)
        span = self._cursor.span
        if span is not None and span.entry_idx == idx and span.first_line <= inner < span.end_line:
            assert self._log.look is not None, "what is drawn has a look"
            mark = Segment("┃", self._log.look.base + self._log.look.cursor)
            strip = Strip([mark, *strip.crop(1, strip.cell_length)], strip.cell_length)
        return strip.crop_extend(0, width, base)

    def notify_style_update(self) -> None:
        """Draw everything again in the colours of a new theme."""
        super().notify_style_update()
        self._finished.forget()
        if self._log.look is not None and (look := look_of(self.app.theme_variables)) != self._log.look:
            self._log.set_look(look)
            self._settle()

    # Selecting with the mouse.

    def place_at(self, x: int, y: int) -> Offset | None:
        """Return the place in the text at a cell of the view, the nearest one outside of it."""
        return log_selection.place_at(self._log, x, self.scroll_offset.y + max(0, min(y, self.size.height - 1)))

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the text of a selection: of messages that lie in it as a whole their source."""
        return log_selection.selected_text(self._log, selection), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def on_click(self, event: Click) -> None:
        """One click folds a thought, two take a word, three its block."""
        # Textual's own answer to two clicks is to take the whole widget.
        event.prevent_default()
        offset = event.get_content_offset(self)
        found = None if offset is None else self.place_at(offset.x, offset.y)
        if found is None:
            return
        if event.chain == 1:
            idx, line = log_selection.entry_and_line(found.y)
            if self._log.view(idx).fold_line == line:
                self._toggle_fold(idx)
        else:
            take = log_selection.word_at if event.chain == 2 else log_selection.block_at
            self.screen.selections = {self: take(self._log, found)}

    # Scrolling.

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if not self._is_settling:
            self._follows_end = new_value >= self.max_scroll_y
            self._settle()

    def scroll_to(self, x: float | None = None, y: float | None = None, **options: Any) -> None:
        """Scroll at once: an animation would aim at a line whose number changes as heights become exact."""
        super().scroll_to(x, y, **{**options, "animate": False})

    def on_resize(self, event: Resize) -> None:
        # The size of the event counts padding and the bar that scrolls, under which the ends of lines would stand.
        if (width := self.scrollable_content_region.width) != self._log.width:
            self._rewrap(width)
        self._settle()

    def _rewrap(self, width: int) -> None:
        """Forget all drawings; keep the reader at the same entry."""
        log = self._log
        has_place = not self._follows_end and bool(log.entries)
        idx, inner = log.index.locate(self.scroll_offset.y) if has_place else (0, 0)
        log.set_width(width)
        if has_place and self._can_draw():
            height = log.draw(idx)
            self._move_to(log.index.start(idx) + min(inner, height - 1))

    def _settle(self) -> None:
        """Draw what is in view, and put the view where the reader is."""
        if not self._can_draw():
            return
        height = self.size.height
        if not self._log.entries:
            self._move_to(0)
        elif self._follows_end:
            self._draw_up_from_end(height)
            self._move_to(self._log.index.total - height)
        else:
            self._move_to(self._draw_down_from(self.scroll_offset.y, height))
        if self._follows_end and self._new_lines:
            self._new_lines = 0
            self.post_message(LinesBelow(0))
        self.refresh()

    def _can_draw(self) -> bool:
        """Whether there is a width and a look; before the first layout there is neither."""
        if self._log.look is None and self.is_attached:
            self._log.set_look(look_of(self.app.theme_variables))
        return self._log.width > 0 and self._log.look is not None

    def _draw_up_from_end(self, height: int) -> None:
        idx = len(self._log) - 1
        while height > 0 and idx >= 0:
            height -= self._log.draw(idx)
            idx -= 1

    def _draw_down_from(self, line: int, height: int) -> int:
        """Draw what is in view from `line` on; return the line at which the same text is now."""
        log = self._log
        idx, inner = log.index.locate(line)
        if not log.is_drawn(idx):
            # Coming from below one reads its last lines first: count from the end, which is what stays in place.
            from_end = log.index.height(idx) - inner
            inner = max(0, log.draw(idx) - from_end)
        below = inner + height
        line = log.index.start(idx) + inner
        while below > 0 and idx < len(log):
            below -= log.draw(idx)
            idx += 1
        return line

    def _measure(self, idx: int) -> None:
        """Take over the height of an entry that changed, and count what it grew below the reader."""
        if not self._can_draw():
            return
        before = self._log.index.height(idx)
        grown = self._log.draw(idx) - before
        if not self._follows_end and grown > 0:
            self._new_lines += grown
            self.post_message(LinesBelow(self._new_lines))

    def _show_cursor(self) -> None:
        span = self._cursor.span
        if span is None:
            return
        self._log.draw(span.entry_idx)
        start = self._log.index.start(span.entry_idx)
        top, height = self.scroll_offset.y, self.size.height
        first, end = start + span.first_line, start + span.end_line
        if first < top or end - first >= height:
            self.scroll_to(y=max(0, first - 1))
        elif end > top + height:
            self.scroll_to(y=end - height)
        self.refresh()

    def _has_thought(self, idx: int) -> bool:
        return not self._log.entries[idx].is_user and self._log.view(idx).fold_line is not None

    def _toggle_fold(self, idx: int) -> None:
        self._log.fold(idx, is_folded=not self._log.is_folded(idx))
        self._log.draw(idx)
        self._settle()

    def _move_to(self, line: int) -> None:
        """Set the size of the log and its position, without taking it for the reader's own scrolling."""
        self._is_settling = True
        try:
            self.virtual_size = Size(self._log.width, self._log.index.total)
            super().scroll_to(y=max(0, line), animate=False, force=True, immediate=True)
        finally:
            self._is_settling = False
