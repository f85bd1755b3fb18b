"""What the bits changed: a stored answer read by another variant of the model, and both views side by side."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from qlocal.chat import token_words, words
from qlocal.chat.actions import Action
from qlocal.chat.features.alternatives import Alternatives
from qlocal.chat.features.base import Feature
from qlocal.chat.features.models import Models
from qlocal.chat.features.turns import Turns
from qlocal.chat.link_state import Link, OwnServer, Variant
from qlocal.chat.logprobs import TOP, token_ids
from qlocal.chat.replay import Replay, ReplayedToken
from qlocal.chat.screens.replay import ReplayScreen
from qlocal.chat.screens.variants import VariantScreen
from qlocal.chat.store.records import Message
from qlocal.errors import EngineError, QLocalError


class Replays(Feature):
    """Swaps the model in the server for the length of one reading, and back."""

    ACTIONS: ClassVar = (
        Action(
            "replay",
            "alt+r",
            "What bits changed",
            "Read the answer at the cursor with another variant of the model and mark where they differ",
            is_shown=False,
        ),
    )

    def replay(self) -> None:
        desk = self.desk
        message = desk.chosen_answer
        if desk.feature(Turns).is_busy:
            desk.say(words.STILL_BUSY)
        elif message is None or message.parent_id is None or not message.content:
            desk.say(words.NO_ANSWER_YET)
        elif message.meta.get("tools"):
            desk.say(words.HAS_TOOLS)
        elif desk.link is None or desk.link.own is None or not desk.is_ready:
            desk.say(words.NEEDS_OWN_SERVER)
        else:
            desk.start(self._choose(desk.link, desk.link.own, message, message.parent_id), "choose")

    async def _choose(self, link: Link, own: OwnServer, message: Message, prompt_id: int) -> None:
        self.desk.say(words.LOOKING_FOR_VARIANTS)
        variants = await own.variants()
        self.desk.notice.clear()
        loaded = next((one for one in variants if one.is_loaded), None)
        others = [one for one in variants if not one.is_loaded]
        if loaded is None or not others:
            self.desk.say(words.NO_VARIANT)
            return
        chosen = await self.desk.ask(VariantScreen(others))
        if chosen is not None:
            self.desk.feature(Turns).occupy(self._compare(link, own, (message, prompt_id), (loaded, chosen)))

    async def _compare(
        self, link: Link, own: OwnServer, answer: tuple[Message, int], variants: tuple[Variant, Variant]
    ) -> None:
        message, prompt_id = answer
        loaded, other = variants
        self.desk.say(token_words.replaying(loaded.name))
        prompt_ids = await own.tokenize(self.desk.session.request(prompt_id))
        first = await own.score(prompt_ids, await self._answer_of(message, prompt_id, loaded), TOP, keep=True)
        ids = token_ids(first.tokens)
        assert ids is not None and first.reference is not None, "our own server tells ids and what it keeps"
        try:
            self.desk.say(token_words.swapping(other.name))
            await self.desk.feature(Models).use(link, other.path)
            self.desk.say(token_words.replaying(other.name))
            if link.own is None:
                raise EngineError("the server went away while the answer was read")
            second = await link.own.score(prompt_ids, ids, TOP, against=first.reference)
        except QLocalError:
            # Waited for, since the model's coming back takes an error off the screen.
            await self.desk.feature(Models).use(link, loaded.path)
            raise
        except asyncio.CancelledError:
            self.desk.start(link.select(loaded.path), "swap", exclusive=False)
            raise
        self.desk.start(link.select(loaded.path), "swap", exclusive=False)
        self.desk.notice.clear()
        # The larger of the two is what the other one is measured by.
        is_kept = loaded.num_bytes >= other.num_bytes
        before, after = (first, second) if is_kept else (second, first)
        kls = second.kl if is_kept else second.kl_reverse
        rows = zip(before.tokens, after.tokens, kls, strict=True)
        names = (loaded.name, other.name) if is_kept else (other.name, loaded.name)
        await self.desk.ask(ReplayScreen(Replay(*names, [ReplayedToken(*row) for row in rows])))

    async def _answer_of(self, message: Message, prompt_id: int, loaded: Variant) -> str | list[int]:
        """Return the answer by its own tokens where they are this vocabulary's, else as text."""
        tokens = await self.desk.feature(Alternatives).kept_tokens(message)
        ids = token_ids(tokens) if tokens and message.model == self.desk.link_state.model else None
        return ids or message.content
