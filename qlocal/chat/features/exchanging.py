"""Conversations to files and back."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.conversations import Conversations
from qlocal.chat.store.history import History
from qlocal.chat.typed_path import typed_path
from qlocal.errors import FormatError, HistoryError

if TYPE_CHECKING:
    from qlocal.chat.exchange.importing import Imported


class Exchanging(Feature):
    """`/export FILE` and `/import-file FILE`."""

    ACTIONS: ClassVar = (
        Action(
            "export", "", "Export", "Write the conversation to a file: .md, .html, or .json with all branches",
            is_shown=False, argument="FILE",
        ),
        Action(
            "import_file", "", "Import", "Read conversations: qlocal's JSON, ChatGPT's, oterm's database",
            is_shown=False, argument="FILE",
        ),
    )  # fmt: skip

    def export(self, name: str) -> None:
        conversation_id = self.desk.session.conversation_id
        if conversation_id is None:
            self.desk.say(words.NO_CONVERSATION)
        else:
            self.desk.start(self._export(conversation_id, name), "exchange")

    def import_file(self, name: str) -> None:
        self.desk.start(self._import(name), "exchange")

    async def _export(self, conversation_id: int, name: str) -> None:
        from qlocal.chat.exchange import writing

        conversation = await self.desk.store.run(lambda history: history.conversation(conversation_id))
        messages = await self.desk.store.run(lambda history: history.messages(conversation_id))
        assert conversation is not None, "an open conversation is in the store"
        path = typed_path(name) if name else Path.cwd() / writing.name_of(conversation)
        text = writing.text_of(path, conversation, self.desk.session.branch, messages)
        self.desk.say(words.exported(await asyncio.to_thread(writing.write_new, path, text)))

    async def _import(self, name: str) -> None:
        from qlocal.chat.exchange.importing import read

        if not name:
            raise FormatError(words.NO_FILE)
        found = await asyncio.to_thread(read, typed_path(name))
        last: int | None = None
        for one in found:
            last = await self.desk.store.run(partial(_add, one))
        if last is None:
            raise HistoryError(words.NOTHING_IMPORTED)
        await self.desk.feature(Conversations).open(last)
        self.desk.say(words.imported(len(found)))


def _add(one: Imported, history: History) -> int:
    return history.add_conversation(one.conversation, one.messages)
