"""The chat driven by keys, with words for what a user does and sees. For every test with the whole app."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.events import Key
from textual.pilot import Pilot

from qlocal.chat.app import ChatApp
from qlocal.chat.preferences import Preferences
from qlocal.chat.store.database import open_database
from qlocal.chat.store.history import History
from qlocal.chat.store.threaded import Store
from qlocal.chat.widgets.notice import Notice
from qlocal.chat.widgets.prompt import Prompt
from qlocal.chat.widgets.status_bar import StatusBar
from qlocal.chat.widgets.transcript import Transcript
from qlocal.config import ChatOptions
from tests.chat.scripted import ScriptedLink

OPTIONS = ChatOptions(model="tiny-model")
ENGLISH = Preferences(language="en")
WAIT_S = 60.0


class Chat:
    """The app under test, with words for what a user does and sees."""

    def __init__(self, app: ChatApp, pilot: Pilot[int], link: ScriptedLink) -> None:
        self.app, self.pilot, self.link = app, pilot, link

    @property
    def shown(self) -> str:
        transcript = self.app.chat.query_one(Transcript)
        return "\n".join(transcript.render_line(y).text.rstrip() for y in range(transcript.size.height))

    @property
    def notice(self) -> str:
        notice = self.app.chat.query_one(Notice)
        return str(notice.content) if notice.display else ""

    @property
    def status(self) -> str:
        return self.app.chat.query_one(StatusBar).status.text()

    @property
    def prompt(self) -> Prompt:
        return self.app.chat.query_one(Prompt)

    async def say(self, text: str) -> None:
        self.prompt.text = text
        await self.pilot.press("enter")

    def press_at_once(self, *keys: str) -> None:
        """Press keys as a slow line brings them: all together, none waiting for what the one before it does."""
        for key in keys:
            self.app.post_message(Key(key, key if len(key) == 1 else None))

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                await self.pilot.pause(0.02)

    async def until_shown(self, text: str) -> None:
        await self.until(lambda: text in self.shown)

    async def until_idle(self) -> None:
        await self.until(lambda: not any(worker.group in ("turn", "history") for worker in self.app.workers))
        await self.pilot.pause()


def run_chat(
    tmp_path: Path,
    link: ScriptedLink,
    use: Callable[[Chat], Awaitable[None]],
    options: ChatOptions = OPTIONS,
    size: tuple[int, int] = (80, 30),
    preferences: Preferences = ENGLISH,
) -> ChatApp:
    async def scenario() -> ChatApp:
        store = Store(tmp_path / "history.sqlite3")
        app = ChatApp(options, store, lambda _options: link, preferences)
        async with app.run_test(size=size) as pilot:
            chat = Chat(app, pilot, link)
            await pilot.pause()
            await use(chat)
        await store.close()
        return app

    return asyncio.run(scenario())


def stored(tmp_path: Path) -> History:
    return History(open_database(tmp_path / "history.sqlite3")[0])
