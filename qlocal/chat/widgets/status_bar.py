"""The line at the bottom that always says: model, state, speed, context."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from qlocal.chat.status_line import StatusLine
from qlocal.clean import clean


class StatusBar(Widget):
    """Draws a `StatusLine`; set `status` to change it."""

    status: reactive[StatusLine] = reactive(StatusLine())

    def render(self) -> Content:
        return Content(clean(self.status.text(self.content_size.width)))
