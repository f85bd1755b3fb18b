"""The entries of the messages that are shown, made once: of a long conversation a turn changes the last ones alone."""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.chat import entry_words
from qlocal.chat.entry import Entry
from qlocal.chat.store.records import Message
from qlocal.chat.summaries import replaced_in


class ShownEntries:
    """Remembers what it was last asked for. Messages that are the same objects have the same entries."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._replaced: set[int] = set()
        self._entries: list[Entry] = []

    def entries(self, messages: Sequence[Message]) -> list[Entry]:
        """Return messages as the transcript shows them."""
        replaced = replaced_in(messages)
        same = 0
        if replaced == self._replaced:
            pairs = zip(self._messages, messages, strict=False)
            same = next((idx for idx, (old, new) in enumerate(pairs) if old is not new), len(self._messages))
            same = min(same, len(messages))
        made = [entry_words.entry_of(message, message.message_id in replaced) for message in messages[same:]]
        self._messages, self._replaced = list(messages), replaced
        self._entries = [*self._entries[:same], *made]
        return self._entries
