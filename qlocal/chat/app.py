"""`qlocal chat`: the application around the chat screen. Paints at once; server and history come in behind it."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from textual import constants, screen, work
from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from qlocal import config
from qlocal.chat.clean_filter import CleanFilter
from qlocal.chat.dim_filter import DimText
from qlocal.chat.features import ACTIONS
from qlocal.chat.hangup import HANGUP, end_with_terminal
from qlocal.chat.languages import speak, t
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.markdown import code
from qlocal.chat.pasting import read_pastes_whole
from qlocal.chat.preferences import Preferences, load_preferences
from qlocal.chat.screens.chat import ChatScreen
from qlocal.chat.store.place import history_path
from qlocal.chat.store.threaded import Store
from qlocal.chat.theme import NAMES, OWN
from qlocal.config import ChatOptions
from qlocal.errors import QLocalError

# A terminal sends Esc alone and at the head of other keys; the wait that tells them apart delays every stop.
ESCAPE_DELAY_S = 0.025

# What has changed is drawn at the next beat of a timer that misses up to two when a frame takes longer than one; at
# Textual's 60 beats a second a key waited 33 ms for nothing. Nothing beats while nothing changes.
BEAT_S = 1 / 240

WARM_UP_S = 0.5
"""After the first paint."""

LinkFactory = Callable[[ChatOptions], Link]


class ChatApp(App[int]):
    """The chat. `make_link` is a parameter so that tests and screenshots can script the server."""

    TITLE = "qlocal"
    COMMAND_PALETTE_BINDING = ""  # its key is that of an action, as all keys are
    BINDINGS: ClassVar[list[BindingType]] = []
    # A list with the focus shows its line as one without: quieter words in it can be read then.
    CSS = """
    OptionList:focus > .option-list--option-highlighted {
        background: $primary 25%; color: $foreground; text-style: bold;
    }
    """

    def __init__(
        self,
        options: ChatOptions,
        store: Store,
        make_link: LinkFactory | None = None,
        preferences: Preferences | None = None,
    ) -> None:
        super().__init__()
        self._preferences = preferences or Preferences()
        speak(self._preferences.chosen_language)
        self._options = options
        self._store = store
        self._make_link = make_link or _make_link
        self._link: Link | None = None
        self._clean, self._dim = CleanFilter(), DimText()
        self.chat = ChatScreen(
            store,
            self._preferences.system if options.system is None else options.system,
            self._preferences.sampling,
            has_model=bool(options.model or options.endpoint),
            write_terminal=self._write_terminal,
        )
        self.failure: QLocalError | None = None

    def on_mount(self) -> None:
        for theme in OWN:
            self.register_theme(theme)
        self.theme = NAMES[self._preferences.theme]
        self.set_keymap({f"chat.{name}": keys for name, keys in self._preferences.keys.items()})
        self.push_screen(self.chat)
        self._open_history()
        # After the first paint: importing the HTTP client takes a third as long as all of the above.
        self.call_after_refresh(self._follow_link)
        if not self.is_headless:
            self.call_after_refresh(self._warm_up)
            loop, leave = asyncio.get_running_loop(), partial(self.exit, HANGUP)
            end_with_terminal(sys.stdin.fileno(), loop, leave, self._store.close_now)

    @work(group="warm up")
    async def _warm_up(self) -> None:
        await asyncio.sleep(WARM_UP_S)
        await asyncio.to_thread(code.warm_up)
        # All that is there now stays: looking through it for garbage would hold up a key by 30 ms, again and again.
        gc.collect()
        gc.freeze()

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [self._dim, *super().get_line_filters(), self._clean]

    def _write_terminal(self, sequence: str) -> bool:
        """Write a control sequence to the terminal; False where there is none."""
        if self._driver is None or self.is_headless:
            return False
        self._driver.write(sequence)
        return True

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Give the palette all actions."""
        for action in self.chat.actions:
            if action.name != "palette":
                yield SystemCommand(t(action.label), t(action.help), partial(self.chat.do, action.name))

    async def action_quit(self) -> None:
        """Leave from any screen; the store finishes what is queued."""
        self.exit(0)

    async def on_unmount(self) -> None:
        if self._link is not None:
            await self._link.aclose()

    @work(group="history")
    async def _open_history(self) -> None:
        try:
            salvage = await self._store.open(self.chat.go_on_in_memory)
            await self.chat.use_history()
        except QLocalError as error:
            # Without a history everything that is said would be lost in silence.
            self.failure = error
            self.exit(error.exit_code)
            return
        if salvage is not None:
            self.chat.tell_of_salvage(salvage)

    @work(group="link")
    async def _follow_link(self) -> None:
        try:
            self._link = self._make_link(self._options)
            self.chat.use_link(self._link)
            async for state in self._link.states():
                self.chat.show_link(state)
        except QLocalError as error:
            self.chat.show_link(LinkState(Phase.FAILED, error=str(error)))


def run_chat(options: ChatOptions) -> int:
    """Run the chat in this terminal and return the exit code. QLocalError if the history cannot be opened."""
    if "ESCDELAY" not in os.environ:
        vars(constants)["ESCAPE_DELAY"] = ESCAPE_DELAY_S
    if "TEXTUAL_FPS" not in os.environ:
        vars(screen)["UPDATE_PERIOD"] = BEAT_S
    read_pastes_whole()
    # Textual draws on standard error.
    if "TEXTUAL_DRIVER" not in os.environ and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise QLocalError("the chat needs a terminal", hint="`qlocal run MODEL PROMPT` answers without one.")
    preferences = load_preferences(ACTIONS)
    store = Store(history_path(config.load_settings()))
    app = ChatApp(options, store, preferences=preferences)
    try:
        code = app.run()
    finally:
        store.close_now()
    if code == HANGUP:
        # Nothing can be flushed to a terminal that is gone: ending as usual, the interpreter would fail over it (120).
        os._exit(HANGUP)
    if app.failure is not None:
        raise app.failure
    return code or 0


def _make_link(options: ChatOptions) -> Link:
    # Imported late for the sake of the first paint: the HTTP client costs 0.1 s.
    from qlocal.chat.link import open_link

    return open_link(options)
