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
from qlocal.chat.languages import t
from qlocal.chat.link_state import Link, LinkState, Phase
from qlocal.chat.screens.facts import FactsScreen
from qlocal.chat.screens.picker import Line, Picker
from qlocal.chat.store.records import Role
from qlocal.errors import EngineError

RESERVED_SHARE = 8
"""One part in so many of the context is kept for the answer when turns are left out."""


class Room(Feature):
    """Leaves turns out, or has the model loaded with more context."""

    ACTIONS: ClassVar = (
        Action(
            "ledger", "", "Ledger", "What fills the context: system, history, draft, and what is free", is_shown=False
        ),
        Action("send_all", "", "Send all", "Send messages again that were left out for room", is_shown=False),
    )

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._link_changed = asyncio.Event()

    def on_link(self, before: LinkState, state: LinkState) -> None:
        self._link_changed.set()

    def ledger(self) -> None:
        if self.desk.link is None or not self.desk.is_ready:
            self.desk.say(words.NO_LINK_YET)
        else:
            self.desk.start(self._show_ledger(self.desk.link), "choose")

    def send_all(self) -> None:
        self.desk.start(self._send_all(), "history")

    async def _show_ledger(self, link: Link) -> None:
        """Count the conversation as it grows, message by message: what each adds is its own."""
        messages = self.desk.session.request_with(self.desk.prompt.sent_text)
        rows: list[tuple[str, str]] = []
        before, most = 0, 0
        for idx, message in enumerate(messages):
            count = await link.count(messages[: idx + 1])
            if count is None:
                self.desk.say(words.NEEDS_OWN_SERVER)
                return
            own, before, most = count.prompt_tokens - before, count.prompt_tokens, count.max_context
            rows.append((f"{own:,}", f"{message['role']}: {words.first_line(message['content'])}"))
        left_out = sum(message.is_left_out for message in self.desk.session.branch)
        rows.append((f"{before:,}", t("together, of {most:,}").format(most=most)))
        rows.append((f"{max(0, most - before):,}", t("free for the answer")))
        rows.append((f"{left_out:,}", t("messages are left out")))
        await self.desk.ask(FactsScreen(t("Ledger"), [Section(t("Tokens"), rows)]))

    async def make_room(self, count: TokenCount) -> bool:
        """Ask what to do; return whether something was done, so that it is worth counting again."""
        self.desk.warn(words.too_long(count))
        trimmed = await self._turns_to_leave_out(count)
        larger = 1 << (count.prompt_tokens + count.prompt_tokens // RESERVED_SHARE).bit_length()
        lines: list[Line[str]] = []
        if trimmed is not None:
            lines.append(Line(words.leave_out_turns(len(trimmed[0])), words.left_room(trimmed[1]), "trim"))
        if self.desk.link_state.path is not None:
            lines.append(Line(words.larger_context(larger), "", "raise"))
        lines.append(Line(t(words.CANCEL), "", "cancel"))
        chosen = await self.desk.ask(Picker(t(words.ROOM), lines, ""))
        if chosen == "trim" and trimmed is not None:
            await self.desk.session.leave_out([message_id for turn in trimmed[0] for message_id in turn])
            self.desk.show_branch()
        elif chosen != "raise" or not await self._raise(larger):
            return False
        self.desk.notice.clear()
        return True

    async def _turns_to_leave_out(self, count: TokenCount) -> tuple[list[list[int]], int] | None:
        """Return the fewest oldest turns without which there is room, and the tokens of the rest; None where even the
        last message alone has too many."""
        assert self.desk.link is not None, "something was counted"
        turns: list[list[int]] = []
        for message in self.desk.session.branch:
            if message.is_left_out:
                continue
            if message.role is Role.USER or not turns:
                turns.append([])
            turns[-1].append(message.message_id)
        most = count.max_context - count.max_context // RESERVED_SHARE
        low, high, tokens = 1, len(turns) - 1, None
        while low <= high:  # the fewest: more are left out, fewer tokens remain
            middle = (low + high) // 2
            without = {message_id for turn in turns[:middle] for message_id in turn}
            rest = await self.desk.link.count(self.desk.session.request(without=without))
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
        left_out = [message.message_id for message in self.desk.session.branch if message.is_left_out]
        if left_out:
            await self.desk.session.leave_out(left_out, False)
            self.desk.show_branch()
        self.desk.say(words.ALL_SENT if left_out else words.NOTHING_LEFT_OUT)
