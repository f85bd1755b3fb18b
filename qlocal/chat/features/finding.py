"""Finding conversations again, and keeping them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.features.base import Feature
from qlocal.chat.features.conversations import Conversations
from qlocal.chat.features.turns import Turns
from qlocal.chat.languages import t
from qlocal.chat.screens.picker import Line, Question
from qlocal.chat.store.records import Conversation
from qlocal.chat.widgets.sidebar import Sidebar


class Finding(Feature):
    """Sidebar, search, titles, pins and tags."""

    ACTIONS: ClassVar = (
        Action("search", "ctrl+f", "Search", "Search all conversations, as you type"),
        Action("sidebar", "ctrl+b", "Sidebar", "Show or hide the list of conversations", is_shown=False),
        Action("rename", "", "Rename", "Give the conversation another title", is_shown=False, argument="TITLE"),
        Action("pin", "", "Pin", "Keep the conversation on top of the list, or no longer", is_shown=False),
        Action("tag", "", "Tag", "Give the conversation tags, or take them away", is_shown=False, argument="TAGS"),
        Action("delete_conversation", "", "Delete", "Delete the conversation, after a question", is_shown=False),
    )

    def on_conversation(self) -> None:
        if self._bar.display:
            self.desk.start(self._fill(), "sidebar")

    def search(self) -> None:
        self.desk.start(self._search(), "choose")

    def sidebar(self) -> None:
        self._bar.display = not self._bar.display
        if self._bar.display:
            self.desk.start(self._fill(), "sidebar")

    def open(self, conversation_id: int) -> None:
        """Open what was chosen in the sidebar."""
        self.desk.feature(Turns).end()
        self.desk.start(self.desk.feature(Conversations).open(conversation_id), "choose")

    def rename(self, title: str) -> None:
        if title:
            self._change(lambda conversation_id: self._rename(conversation_id, title))
        else:
            self.desk.say(words.NO_TITLE)

    def pin(self) -> None:
        self._change(self._pin)

    def tag(self, tags: str) -> None:
        wanted = tuple(dict.fromkeys(tag.removeprefix("#") for tag in tags.replace(",", " ").split()))
        self._change(lambda conversation_id: self._tag(conversation_id, wanted))

    def delete_conversation(self) -> None:
        self._change(self._delete)

    def _change(self, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        conversation_id = self.desk.session.conversation_id
        if conversation_id is None:
            self.desk.say(words.NO_CONVERSATION)
        else:
            self.desk.start(work(conversation_id), "choose")

    async def _search(self) -> None:
        from qlocal.chat.screens.search import SearchScreen

        hit = await self.desk.ask(SearchScreen(self.desk.store))
        if hit is not None:
            self.desk.feature(Turns).end()
            await self.desk.feature(Conversations).open(hit.conversation_id, hit.message_id)

    async def _rename(self, conversation_id: int, title: str) -> None:
        await self.desk.store.run(lambda history: history.rename(conversation_id, title))
        await self._said(words.renamed(title))

    async def _pin(self, conversation_id: int) -> None:
        conversation = await self.desk.store.run(lambda history: history.conversation(conversation_id))
        is_pinned = conversation is not None and conversation.pinned_at is None
        await self.desk.store.run(lambda history: history.pin(conversation_id, is_pinned=is_pinned))
        await self._said(t(words.PINNED if is_pinned else words.UNPINNED))

    async def _tag(self, conversation_id: int, tags: tuple[str, ...]) -> None:
        await self.desk.store.run(lambda history: history.tag(conversation_id, tags))
        await self._said(words.tagged(tags))

    async def _delete(self, conversation_id: int) -> None:
        conversation = await self.desk.store.run(lambda history: history.conversation(conversation_id))
        title = "" if conversation is None else conversation.title
        lines = [Line(t(words.KEEP_IT), "", False), Line(t(words.DELETE_IT), title, True)]
        if await self.desk.ask(Question(t(words.DELETE_CONVERSATION), lines, "")):
            self.desk.feature(Turns).end()
            await self.desk.store.run(lambda history: history.delete(conversation_id))
            self.desk.feature(Conversations).new_conversation()

    async def _said(self, sentence: str) -> None:
        self.desk.say(sentence)
        if self._bar.display:
            await self._fill()

    async def _fill(self) -> None:
        conversations = await self.desk.store.run(lambda history: history.conversations())
        self._bar.show(grouped(conversations, time.time()), self.desk.session.conversation_id)

    @property
    def _bar(self) -> Sidebar:
        return self.desk.screen.query_one(Sidebar)


def grouped(conversations: list[Conversation], now_s: float) -> list[tuple[str, list[Conversation]]]:
    """Return conversations under headings: pinned, then by day, newest first."""
    groups: dict[str, list[Conversation]] = {}
    for conversation in conversations:
        heading = t(words.PINNED_HEAD) if conversation.pinned_at is not None else _day(conversation.updated_at, now_s)
        groups.setdefault(heading, []).append(conversation)
    return list(groups.items())


def _day(then_s: float, now_s: float) -> str:
    then, now = time.localtime(then_s), time.localtime(now_s)
    if then[:3] == now[:3]:
        return t(words.TODAY)
    if then[:3] == time.localtime(now_s - 86_400)[:3]:
        return t(words.YESTERDAY)
    return time.strftime("%Y-%m-%d", then)
