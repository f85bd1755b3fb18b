"""The chat: transcript, prompt, status line. Routes what the user does to session and link, and what they say back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import Static
from textual.worker import Worker

from qlocal.chat import clipboard, words
from qlocal.chat.actions import ACTIONS
from qlocal.chat.answer import Answer
from qlocal.chat.events import AnswerEvent, TextDelta, ThinkingDelta
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.messages import LinesBelow, PromptSubmitted
from qlocal.chat.screens.conversations import ConversationScreen
from qlocal.chat.screens.models import ModelScreen
from qlocal.chat.session import Session
from qlocal.chat.status_line import StatusLine
from qlocal.chat.store.threaded import Store
from qlocal.chat.widgets.notice import Notice
from qlocal.chat.widgets.prompt import Prompt
from qlocal.chat.widgets.status_bar import StatusBar
from qlocal.chat.widgets.transcript import Transcript
from qlocal.errors import QLocalError
from qlocal.schema import PromptProgress


class ChatScreen(Screen[None]):
    """One conversation at a time. Usable from the first paint; what needs a model waits for it and says so."""

    CSS_PATH = "chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [action.binding() for action in ACTIONS]

    def __init__(
        self, store: Store, system: str | None, *, has_model: bool, write_terminal: Callable[[str], bool]
    ) -> None:
        super().__init__()
        self._store = store
        self._session = Session(store, system)
        self._has_model = has_model
        self._write_terminal = write_terminal
        self._link: Link | None = None
        self._link_state = LinkState()
        self._ready = asyncio.Event()
        self._turn: Worker[None] | None = None
        self._loading: Worker[None] | None = None
        self._tokens_per_s: float | None = None
        self._acceptance: float | None = None
        self._is_reading = False
        self._context_used: int | None = None

    def compose(self) -> ComposeResult:
        yield Static(words.WELCOME, id="welcome", markup=False)
        yield Transcript(id="transcript")
        yield Static(id="below", markup=False)
        yield Notice(id="notice")
        yield Prompt(id="prompt")
        yield StatusBar(id="status")

    def on_mount(self) -> None:
        self.query_one("#below").display = False
        self._show_branch()
        prompt = self.query_one(Prompt)
        prompt.border_subtitle = words.KEYS
        prompt.focus()

    # What the app tells.

    def use_link(self, link: Link) -> None:
        """Take the link to talk with, once it is made."""
        self._link = link
        if not self._has_model:
            self.action_choose_model()

    def show_link(self, state: LinkState) -> None:
        """Show a new state of server and model."""
        before, self._link_state = self._link_state, state
        if state.phase is Phase.READY:
            self._ready.set()
        else:
            self._ready.clear()
        if state.error and state.error != before.error:
            self._notice.warn(state.error)
        elif state.phase is Phase.READY and before.error and not self._is_busy:
            self._notice.clear()
        if state.memory and state.memory != before.memory and not state.error and not self._is_busy:
            self._notice.say(state.memory)
        self._show_status()

    def say(self, sentence: str) -> None:
        """Show a sentence beside the prompt."""
        self._notice.say(sentence)

    async def use_history(self) -> None:
        """Take over what was sent in earlier sessions; the store is open now."""
        self.query_one(Prompt).set_history(await self._store.run(lambda history: history.recent_prompts()))

    # What the user does.

    @on(PromptSubmitted)
    def send(self, event: PromptSubmitted) -> None:
        """Begin a turn; while one is going on the text stays in the editor."""
        if self._is_busy:
            self._notice.say(words.STILL_BUSY)
            return
        self.query_one(Prompt).accept()
        self._turn = self._run_turn(event.text)

    @on(LinesBelow)
    def show_lines_below(self, event: LinesBelow) -> None:
        below = self.query_one("#below", Static)
        below.display = event.count > 0
        below.update(words.lines_below(event.count))

    def action_stop(self) -> None:
        if self._turn is not None and self._is_busy:
            self._turn.cancel()

    def action_copy_or_stop(self) -> None:
        if selected := self.query_one(Prompt).selected_text:
            self._copy(selected)
        else:
            self.action_stop()

    def action_regenerate(self) -> None:
        if self._is_busy:
            self._notice.say(words.STILL_BUSY)
        elif self._session.last_prompt() is None:
            self._notice.say(words.NOTHING_TO_REPEAT)
        else:
            self._turn = self._run_turn(None)

    def action_previous_branch(self) -> None:
        self._step_branch(-1)

    def action_next_branch(self) -> None:
        self._step_branch(1)

    def action_new_conversation(self) -> None:
        self.action_stop()
        self._session.clear()
        self._context_used = None
        self._notice.clear()
        self._show_branch()

    def action_open_conversation(self) -> None:
        self.action_stop()
        self._choose_conversation()

    def action_choose_model(self) -> None:
        if self._link is None:
            self._notice.say(words.NO_LINK_YET)
        else:
            self._choose_model(self._link)

    def action_copy_answer(self) -> None:
        answer = next((entry for entry in reversed(self._transcript.entries) if not entry.is_user), None)
        if answer is None or not answer.text:
            self._notice.say(words.NOTHING_TO_COPY)
        else:
            self._copy(answer.text)

    def action_scroll_up(self) -> None:
        self._transcript.scroll_page_up()

    def action_scroll_down(self) -> None:
        self._transcript.scroll_page_down()

    def action_go_to_end(self) -> None:
        self._transcript.go_to_end()

    # A turn.

    @work(exclusive=True, group="turn")
    async def _run_turn(self, text: str | None) -> None:
        """Store the prompt (None: the last one again), wait for the model, receive the answer."""
        try:
            if text is not None:
                await self._session.add_prompt(text, self._link_state.model)
                self._show_branch()
            await self._until_ready()
            if await self._fits():
                await self._receive_answer()
        except QLocalError as error:
            self._notice.warn(str(error))

    async def _until_ready(self) -> None:
        if not self._ready.is_set():
            self._notice.say(words.waiting_for(self._link_state))
            await self._ready.wait()
        self._notice.clear()

    async def _fits(self) -> bool:
        """Whether the conversation fits into the context; if not, both numbers are said and nothing is sent."""
        assert self._link is not None, "a link that is ready exists"
        count = await self._link.count(self._session.request())
        if count is None:
            return True
        self._context_used = count.prompt_tokens
        self._show_status()
        if count.prompt_tokens < count.max_context:
            return True
        self._notice.warn(words.too_long(count))
        return False

    async def _receive_answer(self) -> None:
        assert self._link is not None, "a link that is ready exists"
        request = self._session.request()
        message = await self._session.begin_answer(self._link_state.model)
        self._show_branch()
        answer = Answer(self._store, message.message_id)
        self._tokens_per_s, self._acceptance, self._is_reading = None, None, False
        ticker = self.set_interval(0.5, lambda: self._show_speed(answer))
        try:
            await answer.receive(self._link.answer(request), self._show_event)
        finally:
            ticker.stop()
            self._transcript.flush()
            self._after_answer(answer)

    def _show_event(self, event: AnswerEvent) -> None:
        match event:
            case TextDelta(text):
                if self._is_reading:
                    self._is_reading = False
                    self._notice.clear()
                self._transcript.append_text(text)
            case PromptProgress():
                self._is_reading = True
                self._notice.say(event.sentence)
            case ThinkingDelta():
                self._notice.say(words.THINKING)

    def _show_speed(self, answer: Answer) -> None:
        self._tokens_per_s = answer.tokens_per_s
        self._show_status()

    def _after_answer(self, answer: Answer) -> None:
        """Show how an answer ended. Also for a cancelled turn, so what reads the store has a worker of its own."""
        self._notice.clear()
        if answer.failure is not None:
            self._notice.warn(answer.failure.message)
        elif answer.finish_reason == "length":
            self._notice.warn(words.cut_at_limit(answer.usage))
        if answer.usage is not None:
            self._context_used = answer.usage.prompt_tokens + answer.usage.completion_tokens
            self._acceptance = answer.usage.acceptance
            if answer.usage.max_context is not None:
                self._link_state = replace(self._link_state, max_context=answer.usage.max_context)
        self._show_speed(answer)
        self._refresh_branch()

    # The rest.

    @work(group="history")
    async def _refresh_branch(self) -> None:
        try:
            await self._session.refresh()
        except QLocalError as error:
            self._notice.warn(str(error))
            return
        if self._session.branch:
            self._transcript.update_last(words.entry_of(self._session.branch[-1]))

    @work(exclusive=True, group="history")
    async def _step_branch(self, step: int) -> None:
        if self._is_busy:
            return
        if await self._session.step_branch(step):
            self._show_branch()

    @work(exclusive=True, group="choose")
    async def _choose_conversation(self) -> None:
        try:
            conversations = await self._store.run(lambda history: history.conversations())
            chosen = await self.app.push_screen_wait(ConversationScreen(conversations))
            if chosen is not None:
                await self._session.open(chosen)
                self._context_used = words.known_context(self._session.branch)
                self._show_branch()
                self._show_status()
        except QLocalError as error:
            self._notice.warn(str(error))

    @work(exclusive=True, group="choose")
    async def _choose_model(self, link: Link) -> None:
        try:
            choices = await link.choices()
            chosen = await self.app.push_screen_wait(ModelScreen(choices, self._link_state.model))
            if chosen is not None:
                self.action_stop()
                await link.select(chosen)
        except QLocalError as error:
            self._notice.warn(str(error))

    @work(exclusive=True, group="copy")
    async def _copy(self, text: str) -> None:
        self._notice.say(await clipboard.copy(text, self._write_terminal))

    @property
    def _is_busy(self) -> bool:
        return self._turn is not None and self._turn.is_running

    @property
    def _notice(self) -> Notice:
        return self.query_one(Notice)

    @property
    def _transcript(self) -> Transcript:
        return self.query_one(Transcript)

    def _show_branch(self) -> None:
        has_messages = bool(self._session.branch)
        self.query_one("#welcome").display = not has_messages
        self._transcript.display = has_messages
        self._transcript.show(words.entry_of(message) for message in self._session.branch)

    def _show_status(self) -> None:
        state = self._link_state
        self.query_one(StatusBar).status = StatusLine(
            model=state.model,
            state=state.stage or state.phase.value,
            fraction=state.fraction,
            tokens_per_s=self._tokens_per_s,
            context_used=self._context_used,
            max_context=state.max_context,
            acceptance=self._acceptance,
        )
