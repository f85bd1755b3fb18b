"""The tokens of an answer, one beside the other, with a cursor on one of them. Knows levels, not what they mean."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from qlocal.chat.messages import TokenReached
from qlocal.chat.token_layout import TokenLayout, lay_out

MAX_SHADE = 0.75


class TokenView(ScrollView, can_focus=True):
    """Lines of tokens. Walk with `move`, `move_line` and `go_to`; every change of the cursor is a `TokenReached`."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._texts: list[str] = []
        self._levels: list[float] = []
        self._layout = TokenLayout([[]], [])
        self.cursor = 0
        """Of all tokens, which one."""

    def show(self, texts: Sequence[str], cursor: int = 0) -> None:
        """Show tokens, as `shown_texts` returns them."""
        self._texts, self._levels = list(texts), []
        self._lay_out()
        self.go_to(cursor)

    def shade(self, levels: Sequence[float]) -> None:
        """Colour every token by a level from 0 to 1; none for no colours."""
        self._levels = list(levels)
        self.refresh()

    def go_to(self, idx: int) -> None:
        """Put the cursor on a token, and bring it into view."""
        if not self._texts:
            return
        self.cursor = max(0, min(idx, len(self._texts) - 1))
        if self._layout.line_of:
            line = self._layout.line_of[self.cursor]
            self.scroll_to_region(Region(0, line, 1, 1), animate=False, force=True)
        self.refresh()
        self.post_message(TokenReached(self.cursor))

    def move(self, step: int) -> None:
        """Go so many tokens on."""
        self.go_to(self.cursor + step)

    def move_line(self, step: int) -> None:
        """Go so many lines on, to the token that stands there at about the same column."""
        if not self._texts:
            return
        line = self._layout.line_of[self.cursor]
        column = next(piece.start for piece in self._layout.lines[line] if piece.token_idx == self.cursor)
        target = max(0, min(line + step, len(self._layout.lines) - 1))
        while 0 < target < len(self._layout.lines) - 1 and not self._layout.lines[target]:
            target += 1 if step > 0 else -1
        if (found := self._layout.token_at(target, column)) is not None:
            self.go_to(found)

    @property
    def page_lines(self) -> int:
        return max(1, self.size.height - 1)

    def render_line(self, y: int) -> Strip:
        """Return a line of the view."""
        width, line = self.size.width, self.scroll_offset.y + y
        if line >= len(self._layout.lines):
            return Strip.blank(width, self.rich_style)
        segments = [Segment(piece.text, self._style(piece.token_idx)) for piece in self._layout.lines[line]]
        return Strip(segments).extend_cell_length(width).crop(0, width).apply_style(self.rich_style)

    def on_resize(self, event: Resize) -> None:
        self._lay_out()
        self.go_to(self.cursor)

    def on_click(self, event: Click) -> None:
        found = self._layout.token_at(self.scroll_offset.y + event.y, event.x)
        if found is not None:
            self.go_to(found)

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width
        if width > 0:
            self._layout = lay_out(self._texts, width)
            self.virtual_size = Size(width, len(self._layout.lines))
            self.refresh()

    def _style(self, idx: int) -> Style:
        if idx == self.cursor:
            return Style(reverse=True, bold=True)
        level = self._levels[idx] if idx < len(self._levels) else 0.0
        if level <= 0.0:
            return Style.null()
        variables = self.app.theme_variables
        background = Color.parse(variables["background"])
        if background.ansi is not None:
            # The terminal's own colours cannot be mixed: marked or not is all that can be shown.
            return Style(underline=level >= 0.25, bold=level >= 0.5)
        color = background.blend(Color.parse(variables["error"]), MAX_SHADE * min(1.0, level))
        return Style(bgcolor=color.hex6)
