"""Choose an earlier conversation, last used first."""

from __future__ import annotations

import time
from collections.abc import Sequence

from qlocal.chat.languages import t
from qlocal.chat.screens.picker import Line, Picker
from qlocal.chat.store.records import Conversation


class ConversationScreen(Picker[int]):
    """Returns a conversation's id."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        lines = [Line(one.title, _detail(one), one.conversation_id) for one in conversations]
        super().__init__(t("Conversations"), lines, t("No conversation yet."))


def _detail(conversation: Conversation) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(conversation.updated_at))
    return t("{when}, {count} messages").format(when=when, count=conversation.num_messages)
