"""What every feature works with: the conversation, the server, and the parts of the screen. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from textual.css.query import NoMatches
from textual.screen import Screen
from textual.worker import Worker

from qlocal.chat.languages import t
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.session import Session
from qlocal.chat.shown_entries import ShownEntries
from qlocal.chat.status_line import StatusLine
from qlocal.chat.store.records import Message
from qlocal.chat.store.threaded import Store
from qlocal.chat.told_errors import told
from qlocal.chat.widgets.notice import Notice
from qlocal.chat.widgets.prompt import Prompt
from qlocal.chat.widgets.status_bar import StatusBar
from qlocal.chat.widgets.transcript import Transcript
from qlocal.errors import QLocalError

if TYPE_CHECKING:
    from qlocal.chat.features.base import Feature

T = TypeVar("T")
F = TypeVar("F", bound="Feature")


class Desk:
    """One chat screen's things. Features reach each other by `feature(Kind)`."""

    def __init__(
        self,
        screen: Screen[None],
        store: Store,
        system: str | None,
        sampling: Mapping[str, Any],
        write_terminal: Callable[[str], bool],
    ) -> None:
        self.screen = screen
        self.store = store
        self.session = Session(store, system, sampling)
        self.write_terminal = write_terminal
        """Writes a control sequence to the terminal; False where there is none."""
        self.link: Link | None = None
        self.link_state = LinkState()
        self._shown = ShownEntries()
        self._features: dict[type[Feature], Feature] = {}

    # The parts of the screen.

    @property
    def transcript(self) -> Transcript:
        return self.screen.query_one(Transcript)

    @property
    def prompt(self) -> Prompt:
        return self.screen.query_one(Prompt)

    @property
    def notice(self) -> Notice:
        return self.screen.query_one(Notice)

    @property
    def message_at_cursor(self) -> Message | None:
        """The message of the branch that the transcript's cursor is in."""
        entry = self.transcript.cursor_entry
        if entry is None:
            return None
        return next((one for one in self.session.branch if one.message_id == entry.entry_id), None)

    @property
    def chosen_answer(self) -> Message | None:
        """The answer that the cursor is in or that follows the message it is in; the last one where it is nowhere."""
        at = self.message_at_cursor
        return self.session.last_answer() if at is None else self.session.answer_from(at)

    def say(self, sentence: str) -> None:
        """Show information beside the prompt, in the language that is spoken."""
        self.notice.say(t(sentence))

    def warn(self, sentence: str) -> None:
        """Show an error beside the prompt, in the language that is spoken."""
        self.notice.warn(told(t(sentence)))

    def show_price(self, sentence: str) -> None:
        """Show beside the status what the message would cost that is being written."""
        self.update_status(price=sentence)

    def update_status(self, **changes: Any) -> None:
        """Change fields of the status line."""
        bar = self.screen.query_one(StatusBar)
        bar.status = replace(bar.status, **changes)

    @property
    def status(self) -> StatusLine:
        return self.screen.query_one(StatusBar).status

    def show_branch(self) -> None:
        """Draw the conversation as the session has it now, at its end."""
        self.show_messages(self.session.branch)

    def show_messages(self, messages: Sequence[Message]) -> None:
        """Draw these messages as the conversation, at its end."""
        self.screen.query_one("#welcome").display = not messages
        self.transcript.display = bool(messages)
        self.transcript.show(self._shown.entries(messages))

    @property
    def is_ready(self) -> bool:
        """Whether a model is there to answer."""
        return self.link_state.phase is Phase.READY

    # Work that takes time.

    def start(self, work: Coroutine[Any, Any, None], group: str, *, exclusive: bool = True) -> Worker[None]:
        """Do work beside the screen; what it raises for the user is shown beside the prompt.

        Exclusive work ends what goes on in its group.
        """
        return self.screen.run_worker(self._with_errors_shown(work), group=group, exclusive=exclusive)

    async def ask(self, screen: Screen[T]) -> T | None:
        """Show a screen and return what the user chose there, None for nothing. Only from within `start`."""
        return await self.screen.app.push_screen_wait(screen)

    async def _with_errors_shown(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except QLocalError as error:
            self.warn(str(error))
        except NoMatches:
            # What ends because the chat ends finds its screen empty: there is nobody to show anything to.
            if self.screen.query(Transcript):
                raise

    # Features.

    def add_features(self, kinds: tuple[type[Feature], ...]) -> None:
        """Make one of every kind."""
        for kind in kinds:
            self._features[kind] = kind(self)

    @property
    def features(self) -> tuple[Feature, ...]:
        return tuple(self._features.values())

    def feature(self, kind: type[F]) -> F:
        """Return the one feature of this kind."""
        found = self._features[kind]
        assert isinstance(found, kind), "add_features made it of this kind"
        return found
