"""Summing up what was said, when the user wants it; `room.py` offers it where a conversation does not fit."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.room import RESERVED_SHARE
from qlocal.chat.features.turns import Turns
from qlocal.chat.summarizing import write_summary

USUAL_TOKENS = 1024
"""Of a summary, where it is not known how much fits."""


class Summaries(Feature):
    """The summary is sent in the place of what it stands for; /send-all takes it back."""

    ACTIONS: ClassVar = (
        Action(
            "summarize",
            "",
            "Summarize",
            "Have the model summarize all so far, and send that in its place; /send-all takes it back",
            is_shown=False,
        ),
    )

    def summarize(self) -> None:
        turns = self.desk.session.turns()
        if self.desk.link is None or not self.desk.is_ready:
            self.desk.say(words.NO_LINK_YET)
        elif not turns:
            self.desk.say(words.NO_CONVERSATION)
        else:
            most = (self.desk.link_state.max_context or RESERVED_SHARE * USUAL_TOKENS) // RESERVED_SHARE
            ids = [message_id for turn in turns for message_id in turn]
            self.desk.feature(Turns).occupy(self._write(ids, most))

    async def _write(self, ids: list[int], max_tokens: int) -> None:
        await write_summary(self.desk, ids, max_tokens, None)
