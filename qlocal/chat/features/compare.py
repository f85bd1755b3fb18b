"""Several models, or several quantizations of one, answer one prompt, and their answers stand beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

from qlocal.chat import entry_words, origin, token_words, words
from qlocal.chat.actions import Action
from qlocal.chat.answer import Answer
from qlocal.chat.entry import Entry
from qlocal.chat.events import AnswerEvent, TextDelta, ToolRound
from qlocal.chat.features.base import Feature
from qlocal.chat.features.models import Models
from qlocal.chat.features.tools import Tools
from qlocal.chat.features.turns import Turns
from qlocal.chat.languages import t
from qlocal.chat.link_state import Choice, Link
from qlocal.chat.screens.compare import CompareChoice, CompareScreen
from qlocal.chat.told_errors import told
from qlocal.chat.tools.shown import block
from qlocal.errors import QLocalError


class Compare(Feature):
    """One engine answers for all, one after the other: each model is loaded in place of the one before. Answers are
    branches under the prompt, with their models' names; all are asked for as any answer of the conversation is."""

    ACTIONS: ClassVar = (
        Action("compare", "f6", "Compare", "Have several models answer one prompt side by side", is_shown=False),
    )

    def compare(self) -> None:
        desk = self.desk
        if desk.feature(Turns).is_busy:
            desk.say(words.STILL_BUSY)
        elif desk.link is None or not desk.is_ready:
            desk.say(words.NO_LINK_YET)
        elif not desk.prompt.text.strip() and desk.session.last_prompt() is None:
            desk.say(words.NOTHING_TO_COMPARE)
        else:
            desk.start(self._choose(desk.link), "choose")

    async def _choose(self, link: Link) -> None:
        current = self.desk.link_state.model
        models = await self.desk.ask(CompareChoice(await self._choices(link), current))
        if models is not None:
            self.desk.feature(Turns).occupy(self._run(link, models))

    async def _choices(self, link: Link) -> list[Choice]:
        """Return what can be chosen, with the variants of the loaded model that lie beside it and have no name."""
        choices = await link.choices()
        if link.own is None:
            return choices
        self.desk.say(words.LOOKING_FOR_VARIANTS)
        variants = await link.own.variants()
        self.desk.notice.clear()
        known = {text for one in choices if one.is_here for text in (one.name, one.detail)}
        beside = [one for one in variants if not {one.name, one.path} & known]
        return choices + [Choice(one.name, token_words.variant_detail(one), path=one.path) for one in beside]

    async def _run(self, link: Link, models: Sequence[Choice]) -> None:
        desk, session = self.desk, self.desk.session
        before = desk.link_state.path or desk.link_state.model
        options = desk.feature(Turns).options()  # one seed for all
        if text := desk.prompt.sent_text.strip():
            desk.prompt.accept()
            await session.add_prompt(text, desk.link_state.model)
        prompt = session.last_prompt()
        assert prompt is not None, "there is a prompt, or one was just written"
        screen = CompareScreen(prompt.content, [one.name for one in models], desk.feature(Turns).end)
        answers: list[int | None] = [None] * len(models)

        def keep(column: int | None) -> None:
            desk.start(self._keep(None if column is None else answers[column]), "history", exclusive=False)

        await desk.screen.app.push_screen(screen, keep)
        try:
            await screen.is_drawn.wait()
            for idx, model in enumerate(models):
                answers[idx] = await self._answer(link, screen, idx, model, prompt.message_id, options)
        finally:
            screen.end()
            if before is not None:
                desk.start(link.select(before), "swap", exclusive=False)

    async def _answer(
        self, link: Link, screen: CompareScreen, idx: int, choice: Choice, prompt_id: int, options: dict[str, Any]
    ) -> int | None:
        """Load a model and have it answer; returns the answer's id, None where the model cannot be loaded."""
        session, model = self.desk.session, choice.name
        screen.begin(idx, Entry(idx, False, "", model, t(words.COMPARE_LOADS)))
        try:
            if model != self.desk.link_state.model or choice.path not in (None, self.desk.link_state.path):
                await self.desk.feature(Models).use(link, choice.target)
        except QLocalError as error:
            screen.finish(idx, Entry(idx, False, "", model, note=told(str(error))))
            return None
        request = session.request(prompt_id)
        message = await session.begin_answer(self.desk.link_state.model, prompt_id)
        screen.begin(idx, Entry(idx, False, "", model, is_streaming=True))
        state = self.desk.link_state
        about = {"asked": origin.asked_for(options, state), "made_by": origin.made_by(state)}
        answer = Answer(self.desk.store, message.message_id, None, about)

        def show(event: AnswerEvent) -> None:
            if isinstance(event, TextDelta):
                screen.append(idx, event.text)
            elif isinstance(event, ToolRound):
                screen.append(idx, block(event.round))

        try:
            await answer.receive(self.desk.feature(Tools).answer(link, request, options, None), show)
        except asyncio.CancelledError:
            screen.finish(idx, Entry(idx, False, answer.text, model, note=t(words.STOPPED)))
            raise
        await session.refresh_last()
        screen.finish(idx, entry_words.entry_of(session.branch[-1]))
        return message.message_id

    async def _keep(self, message_id: int | None) -> None:
        """Show the branch of one answer, or where the last one left it."""
        session = self.desk.session
        conversation_id = session.conversation_id
        if message_id is not None and conversation_id is not None:
            await self.desk.store.run(lambda history: history.select_branch(conversation_id, message_id))
        await session.refresh()
        self.desk.show_branch()
