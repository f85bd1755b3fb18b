"""What to do where a conversation does not fit: nothing is ever dropped without the user's word."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.desk import Desk
from qlocal.chat.events import TokenCount
from qlocal.chat.facts import Section
from qlocal.chat.features.base import Feature
from qlocal.chat.features.tools import Tools
from qlocal.chat.languages import t
from qlocal.chat.link_state import LinkState, Phase
from qlocal.chat.screens.facts import FactsScreen
from qlocal.chat.screens.picker import Line, Question
from qlocal.chat.summarizing import write_summary
from qlocal.errors import EngineError

RESERVED_SHARE = 8
"""One part in so many of the context is kept for the answer when turns are left out."""


class Room(Feature):
    """Leaves turns out, or has the model loaded with more context."""

    ACTIONS: ClassVar = (
        Action("send_all", "", "Send all", "Send messages again that were left out for room", is_shown=False),
    )

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._link_changed = asyncio.Event()

    def on_link(self, before: LinkState, state: LinkState) -> None:
        self._link_changed.set()

    def send_all(self) -> None:
        self.desk.start(self._send_all(), "history")

    async def make_room(self, count: TokenCount) -> bool:
        """Ask what to do; return whether something was done, so that it is worth counting again."""
        self.desk.warn(words.too_long(count))
        trimmed = await self._turns_to_leave_out(count)
        summed = await self._turns_to_summarize(count)
        larger = 1 << (count.prompt_tokens + count.prompt_tokens // RESERVED_SHARE).bit_length()
        lines: list[Line[str]] = []
        if trimmed is not None:
            lines.append(Line(words.leave_out_turns(len(trimmed[0])), words.left_room(trimmed[1]), "trim"))
        if summed is not None:
            lines.append(Line(words.summarize_turns(len(summed)), "", "summarize"))
        if self.desk.link_state.path is not None:
            lines.append(Line(words.larger_context(larger), "", "raise"))
        lines.append(Line(t(words.CANCEL), "", "cancel"))
        chosen = await self.desk.ask(Question(t(words.ROOM), lines, ""))
        if chosen == "trim" and trimmed is not None:
            await self.desk.session.leave_out([message_id for turn in trimmed[0] for message_id in turn])
            self.desk.show_branch()
        elif chosen == "summarize" and summed is not None:
            ids = [message_id for turn in summed for message_id in turn]
            most = count.max_context // RESERVED_SHARE
            return await write_summary(self.desk, ids, most, self.desk.session.last_prompt())
        elif chosen != "raise" or not await self._raise(larger):
            return False
        self.desk.notice.clear()
        return True

    async def _turns_to_summarize(self, count: TokenCount) -> list[list[int]] | None:
        """Return the turns whose place a summary would take; fewer where all of them do not fit into one request, so
        that a second one may be needed. None where there are none."""
        assert self.desk.link is not None, "something was counted"
        most = count.max_context // RESERVED_SHARE
        needed = await self._turns_to_leave_out(count, kept=most)
        turns = self.desk.session.turns()[:-1] if needed is None else needed[0]
        low, high = 0, len(turns)
        while low < high:  # the most of them that can be read at once
            middle = (low + high + 1) // 2
            ids = [message_id for turn in turns[:middle] for message_id in turn]
            found = await self.desk.link.count(self.desk.session.request_for_summary(ids))
            if found is not None and found.prompt_tokens + most <= count.max_context:
                low = middle
            else:
                high = middle - 1
        # A summary of nothing but a summary would win nothing.
        old = {message.message_id for message in self.desk.session.branch if message.is_summary}
        return turns[:low] if low > 1 or (low == 1 and turns[0][0] not in old) else None

    async def _turns_to_leave_out(self, count: TokenCount, kept: int = 0) -> tuple[list[list[int]], int] | None:
        """Return the fewest oldest turns without which there is room, and the tokens of the rest; None where even the
        last message alone has too many. kept: tokens that something else will take."""
        assert self.desk.link is not None, "something was counted"
        turns, tools = self.desk.session.turns(), self.desk.feature(Tools).offered
        most = count.max_context - count.max_context // RESERVED_SHARE - kept
        low, high, tokens = 1, len(turns) - 1, None
        while low <= high:  # the fewest: more are left out, fewer tokens remain
            middle = (low + high) // 2
            without = {message_id for turn in turns[:middle] for message_id in turn}
            rest = await self.desk.link.count(self.desk.session.request(without=without), tools)
            if rest is not None and rest.prompt_tokens <= most:
                high, tokens = middle - 1, rest.prompt_tokens
            else:
                low = middle + 1
        return None if tokens is None else (turns[:low], tokens)

    async def _raise(self, max_context: int) -> bool:
        """Show what a larger context takes, and load the model with it. QLocalError where it does not fit."""
        link, path = self.desk.link, self.desk.link_state.path
        assert link is not None and path is not None, "offered for our own server alone"
        plan = await link.plan(path, max_context)
        sections = [] if plan is None else [Section(t(words.PLAN), [("", line) for line in [*plan.table, *plan.notes]])]
        if not await self.desk.ask(FactsScreen(words.larger_context(max_context), sections, enter=t(words.LOADS_IT))):
            return False
        await link.select(path, max_context)
        while not self.desk.is_ready or (self.desk.link_state.max_context or 0) < max_context:
            if self.desk.link_state.phase is Phase.FAILED:
                raise EngineError(f"{path} could not be loaded: {self.desk.link_state.error}")
            self._link_changed.clear()
            await self._link_changed.wait()
        return True

    async def _send_all(self) -> None:
        session = self.desk.session
        left_out = [one.message_id for one in session.branch if one.is_left_out and not one.is_summary]
        summaries = [one.message_id for one in session.branch if one.stands_for]
        if left_out or summaries:
            await session.leave_out(left_out, False)
            await session.leave_out(summaries)  # without them, what they stand for is sent itself
            self.desk.show_branch()
        self.desk.say(words.ALL_SENT if left_out or summaries else words.NOTHING_LEFT_OUT)
