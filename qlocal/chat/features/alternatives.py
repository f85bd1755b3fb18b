"""What else the model could have written, and going on from there."""

from __future__ import annotations

from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.answer import Begun
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.logprobs import TOP, TokenLogprobs, pack, text_of, unpack
from qlocal.chat.screens.alternatives import AlternativesScreen
from qlocal.chat.store.records import Message


class Alternatives(Feature):
    """Looks at the tokens of an answer. They come with it from our own server; those of other answers are asked for."""

    ACTIONS: ClassVar = (
        Action(
            "alternatives",
            "f4",
            "Tokens",
            "What else could have stood at every token of the answer at the cursor; Enter forks there",
        ),
    )

    def alternatives(self) -> None:
        message = self.desk.chosen_answer
        if self.desk.feature(Turns).is_busy:
            self.desk.say(words.STILL_BUSY)
        elif message is None or message.parent_id is None or not message.content:
            self.desk.say(words.NO_ANSWER_YET)
        elif message.meta.get("tools"):
            self.desk.say(words.HAS_TOOLS)
        else:
            self.desk.start(self._look(message, message.parent_id), "choose")

    async def _look(self, message: Message, prompt_id: int) -> None:
        tokens = await self.tokens_of(message, prompt_id)
        if tokens is None:
            self.desk.say(words.NO_PROBABILITIES)
            return
        fork = await self.desk.ask(AlternativesScreen(message.model, tokens))
        if fork is None:
            return
        chosen = tokens[fork.token_idx].top[fork.candidate_idx]
        begun = [*tokens[: fork.token_idx], TokenLogprobs(chosen, tokens[fork.token_idx].top)]
        self.desk.feature(Turns).go_on(prompt_id, Begun(text_of(begun), tuple(begun)))

    async def tokens_of(self, message: Message, prompt_id: int) -> list[TokenLogprobs] | None:
        """Return the tokens of an answer with their alternatives: those that were kept, else what the model that is
        loaded gives them. None where neither can be had."""
        kept = await self.kept_tokens(message)
        if kept is not None or self.desk.link is None or self.desk.link.own is None or not self.desk.is_ready:
            return kept
        self.desk.say(words.SCORING)
        scored = await self.desk.link.own.score(self.desk.session.request(prompt_id), message.content, TOP)
        self.desk.notice.clear()
        message_id = message.message_id
        await self.desk.store.run(lambda history: history.save_logprobs(message_id, pack(scored.tokens)))
        return scored.tokens

    async def kept_tokens(self, message: Message) -> list[TokenLogprobs] | None:
        """Return the tokens that are stored with an answer, None where there are none."""
        packed = await self.desk.store.run(lambda history: history.logprobs(message.message_id))
        return None if packed is None else unpack(packed)
