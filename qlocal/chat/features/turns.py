"""Asking and answering: a turn from Enter to the last token, and stopping it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, ClassVar

from textual.worker import Worker

from qlocal.chat import entry_words, origin, words
from qlocal.chat.actions import Action
from qlocal.chat.answer import Answer, Begun
from qlocal.chat.desk import Desk
from qlocal.chat.events import AnswerEvent, TextDelta, ToolRound
from qlocal.chat.features.base import Feature
from qlocal.chat.features.room import Room
from qlocal.chat.features.structured import Structured
from qlocal.chat.features.tools import Tools
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.logprobs import token_ids
from qlocal.chat.store.records import Message, MessageState
from qlocal.chat.tools.shown import block
from qlocal.schema import PromptProgress, QueuePlace

SPEED_S = 0.5


class Turns(Feature):
    """One turn at a time. A message that is sent early waits for the model, one that is sent during an answer for its
    end."""

    ACTIONS: ClassVar = (
        Action("stop", "escape", "Stop", "Stop the answer; what was written stays", is_shown=False),
        Action("regenerate", "ctrl+r", "Again", "Answer the last message anew; the old answer stays as a branch"),
    )

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._ready = asyncio.Event()
        self._turn: Worker[None] | None = None
        self._shows_wait = False
        self._shown: Worker[None] | None = None
        self.waiting: list[str] = []
        """What was sent during the turn that goes on; the next turns."""

    @property
    def is_busy(self) -> bool:
        """Whether a turn is going on."""
        return self._turn is not None and not self._turn.is_finished

    def on_link(self, before: LinkState, state: LinkState) -> None:
        if state.phase is Phase.READY:
            self._ready.set()
            if before.phase is not Phase.READY:
                # After the screen has cleared what it said of the server.
                self.desk.screen.call_later(self._offer_to_go_on)
        else:
            self._ready.clear()

    def _offer_to_go_on(self) -> None:
        answer = self.desk.session.last_answer()
        if answer is not None and answer.state is MessageState.FAILED and answer.content and not self.is_busy:
            self.desk.say(words.GO_ON_OFFERED)

    def send(self, text: str) -> None:
        """Begin a turn, after the one that is going on."""
        self.desk.prompt.accept()
        if self.is_busy:
            self.waiting.append(text)
            self._show_waiting()
        else:
            self.occupy(self._run(text))

    def send_edited(self, text: str, edited: Message) -> None:
        """Ask anew, with another text in the place of a message of the user."""
        self.desk.prompt.accept()
        self.occupy(self._run(text, edited))

    def occupy(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work that needs the model for itself, in the place of a turn: Esc ends it."""
        if self.is_busy:
            work.close()
            self.desk.say(words.STILL_BUSY)
        else:
            self._turn = self.desk.start(self._with_those_that_wait(work), "turn")

    def stop(self) -> None:
        if self.waiting:
            self._take_back(self.waiting[-1:])
        elif self.is_busy:
            self.end()
        else:
            self.desk.transcript.release()

    def end(self) -> None:
        """Stop the answer, and take back all that waits for its end."""
        self._take_back(self.waiting[:])
        if self._turn is not None and self.is_busy:
            self._turn.cancel()

    def regenerate(self) -> None:
        if self.is_busy:
            self.desk.say(words.STILL_BUSY)
        elif self.desk.session.last_prompt() is None:
            self.desk.say(words.NOTHING_TO_REPEAT)
        else:
            self.occupy(self._run(None))

    def go_on(self, prompt_id: int, begun: Begun) -> None:
        """Have a prompt answered anew by an answer that is begun already; the old one stays as a branch."""
        self.occupy(self.go_on_with(prompt_id, begun))

    async def go_on_with(self, prompt_id: int, begun: Begun) -> None:
        """The same, for work that occupies the turn already."""
        await self._until_ready()
        if self.desk.link_state.endpoint is not None:
            self.desk.say(words.NEEDS_OWN_SERVER)
            return
        await self._receive_answer(prompt_id, begun)

    async def repeat(self, answer: Message, prompt_id: int) -> None:
        """Ask for an answer as it was asked for, sampler and seed, and say whether the text is the same and what has
        changed since."""
        await self._until_ready()
        asked = answer.meta.get("asked")
        if not isinstance(asked, dict) or "seed" not in asked:
            self.desk.say(words.NO_SEED)
            return
        await self._receive_answer(prompt_id, asked=asked)
        await self.desk.session.refresh_last()
        again = self.desk.session.last_answer()
        if again is not None and again.state is MessageState.COMPLETE:
            self.desk.say(origin.repeated(answer, again))

    async def _with_those_that_wait(self, work: Coroutine[Any, Any, None]) -> None:
        """Do a turn, then those that were asked for meanwhile; what goes wrong gives their texts back to the editor."""
        try:
            await work
            while self.waiting:
                if self._shown is not None:
                    await self._shown.wait()  # else it would draw the answer before over the next
                text = self.waiting.pop(0)
                self._show_waiting()
                await self._run(text)
        finally:
            self._take_back(self.waiting[:])

    def _take_back(self, texts: list[str]) -> None:
        """Put the last of what waits into the editor again, before what is written there."""
        if texts:
            del self.waiting[-len(texts) :]
            prompt = self.desk.prompt
            prompt.text = "\n\n".join([*texts, prompt.text] if prompt.text else texts)
            prompt.move_cursor(prompt.document.end)
            self._show_waiting()

    def _show_waiting(self) -> None:
        self.desk.prompt.border_title = words.waiting(self.waiting) if self.waiting else ""
        for feature in self.desk.features:
            feature.on_waiting()

    async def _run(self, text: str | None, edited: Message | None = None) -> None:
        """Store the prompt (None: the last one again), wait for the model, receive the answer. edited: the message in
        whose place the prompt comes."""
        if text is not None:
            await self.desk.session.add_prompt(text, self.desk.link_state.model, edited)
            self.desk.show_branch()
        await self._until_ready()
        if await self._fits():
            await self._receive_answer()

    async def _until_ready(self) -> None:
        if not self._ready.is_set():
            self.desk.say(words.waiting_for(self.desk.link_state))
            await self._ready.wait()
        self.desk.notice.clear()

    async def _fits(self) -> bool:
        """Whether the conversation fits into the context; if not, both numbers are said and the user decides."""
        assert self.desk.link is not None, "a link that is ready exists"
        count = await self.desk.link.count(self.desk.session.request(), self.desk.feature(Tools).offered)
        if count is None:
            return True
        self.desk.update_status(context_used=count.prompt_tokens)
        if count.prompt_tokens < count.max_context:
            return True
        if await self.desk.feature(Room).make_room(count):
            return await self._fits()
        self._take_back(self.waiting[:])
        return False

    async def _receive_answer(
        self, prompt_id: int | None = None, begun: Begun | None = None, asked: dict[str, Any] | None = None
    ) -> None:
        assert self.desk.link is not None, "a link that is ready exists"
        request = self.desk.session.request(prompt_id)
        message = await self.desk.session.begin_answer(self.desk.link_state.model, prompt_id)
        self.desk.show_branch()
        self.desk.feature(Structured).begin()
        options = dict(asked or self.options())
        asked = asked or origin.asked_for(options, self.desk.link_state)
        if begun is not None:
            self.desk.transcript.append_text(begun.text)
            options |= _going_on(request, begun)
        about = {"asked": asked, "made_by": origin.made_by(self.desk.link_state)}
        answer = Answer(self.desk.store, message.message_id, begun, about)
        self._shows_wait = False
        self.desk.update_status(tokens_per_s=None, acceptance=None)
        ticker = self.desk.screen.set_interval(SPEED_S, lambda: self._show_speed(answer))
        try:
            events = self.desk.feature(Tools).answer(self.desk.link, request, options, begun)
            await answer.receive(events, self._show_event)
        finally:
            ticker.stop()
            self.desk.transcript.flush()
            self._after_answer(answer)

    def options(self) -> dict[str, Any]:
        """Return how an answer of this conversation is asked for: its sampling, a seed, its form."""
        return {"seed": new_seed(), **self.desk.session.sampling, **self.desk.feature(Structured).options}

    def _show_event(self, event: AnswerEvent) -> None:
        match event:
            case TextDelta(text):
                if self._shows_wait:
                    self._shows_wait = False
                    self.desk.notice.clear()
                self.desk.transcript.append_text(text)
                self.desk.feature(Structured).take(text)
            case ToolRound(one):
                self.desk.transcript.append_text(block(one))
            case QueuePlace():
                self._shows_wait = True
                self.desk.say(words.queued(event))
            case PromptProgress():
                self._shows_wait = True
                self.desk.say(words.reading(event))

    def _show_speed(self, answer: Answer) -> None:
        self.desk.update_status(tokens_per_s=answer.tokens_per_s)

    def _after_answer(self, answer: Answer) -> None:
        """Show how an answer ended. Also for a cancelled turn, so what reads the store has a worker of its own."""
        desk = self.desk
        desk.notice.clear()
        if answer.failure is not None:
            desk.warn(answer.failure.message)
            self._take_back(self.waiting[:])
        elif answer.finish_reason == "length":
            desk.warn(words.cut_at_limit(answer.usage))
        self._show_speed(answer)
        if (usage := answer.usage) is not None:
            desk.update_status(context_used=usage.prompt_tokens + usage.completion_tokens, acceptance=usage.acceptance)
            if usage.max_context is not None:
                desk.link_state = replace(desk.link_state, max_context=usage.max_context)
                desk.update_status(max_context=usage.max_context)
        self._shown = desk.start(self._refresh_branch(), "history", exclusive=False)

    async def _refresh_branch(self) -> None:
        await self.desk.session.refresh_last()
        if self.desk.session.branch:
            self.desk.transcript.update_last(entry_words.entry_of(self.desk.session.branch[-1]))


def new_seed() -> int:
    """Return a seed of 31 bits: every answer has one, so that it can be repeated."""
    return secrets.randbelow(1 << 31)


def _going_on(request: list[dict[str, Any]], begun: Begun) -> dict[str, Any]:
    """Return the options for going on with an answer: by its very tokens where they are known, else by its text, which
    is added to the request as the last message."""
    if begun.tokens and (ids := token_ids(begun.tokens)) is not None:
        return {"answer_start_ids": ids}
    request.append({"role": "assistant", "content": begun.text})
    return {"continue_final_message": True}
