"""The conversations at the left side, under headings."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from qlocal.chat.messages import ConversationChosen
from qlocal.chat.store.records import Conversation
from qlocal.clean import clean_line

_CONVERSATION = "conversation-"


class Sidebar(OptionList):
    """Hidden at first; Enter or a click opens a conversation."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)

    def on_mount(self) -> None:
        self.display = False

    def show(self, groups: Sequence[tuple[str, Sequence[Conversation]]], current: int | None) -> None:
        """Show conversations by heading, the open one marked."""
        self.clear_options()
        for heading, conversations in groups:
            self.add_option(Option(Content.styled(clean_line(heading), "dim"), disabled=True))
            for one in conversations:
                tags = "".join(f" #{tag}" for tag in one.tags)
                mark = "● " if one.conversation_id == current else "  "
                title = Content(f"{mark}{clean_line(one.title)}") + Content.styled(clean_line(tags), "dim")
                self.add_option(Option(title, id=f"{_CONVERSATION}{one.conversation_id}"))
        if current is not None and any(option.id == f"{_CONVERSATION}{current}" for option in self.options):
            self.highlighted = self.get_option_index(f"{_CONVERSATION}{current}")

    @on(OptionList.OptionSelected)
    def choose(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_id is not None:
            self.post_message(ConversationChosen(int(event.option_id.removeprefix(_CONVERSATION))))
