"""The ledger: what fills the context, by its parts and by its messages, counted as the server counts."""

from __future__ import annotations

from typing import Any, ClassVar

from qlocal.chat import words
from qlocal.chat.actions import Action
from qlocal.chat.facts import Section, bar
from qlocal.chat.features.base import Feature
from qlocal.chat.features.room import RESERVED_SHARE
from qlocal.chat.features.tools import Tools
from qlocal.chat.languages import t
from qlocal.chat.link_state import Link
from qlocal.chat.screens.facts import FactsScreen
from qlocal.errors import QLocalError


class Ledger(Feature):
    """Every part is a difference of two counts of whole conversations, so that together they are what is sent."""

    ACTIONS: ClassVar = (
        Action(
            "ledger",
            "",
            "Ledger",
            "What fills the context: system, history, draft, attachments, tools, room for the answer",
            is_shown=False,
        ),
    )

    def ledger(self) -> None:
        if self.desk.link is None or not self.desk.is_ready:
            self.desk.say(words.NO_LINK_YET)
        else:
            self.desk.start(self._show(self.desk.link), "choose")

    async def _show(self, link: Link) -> None:
        session, prompt = self.desk.session, self.desk.prompt
        messages = session.request_with(prompt.sent_text)
        whole = await link.count(messages, self.desk.feature(Tools).offered) if messages else None
        if whole is None:
            self.desk.say(words.NEEDS_OWN_SERVER if messages else words.NO_CONVERSATION)
            return
        most = whole.max_context
        plain, counts = await self._by_message(link, messages)
        stored = session.request_with("")
        system = counts[0] if messages[0]["role"] == "system" else 0
        history = await self._tokens(link, stored) if len(stored) > bool(system) else system
        typed = await self._tokens(link, session.request_with(prompt.attachments.without_chips(prompt.text)))
        typed = max(typed, history)
        wanted = session.sampling.get("max_tokens") or most // RESERVED_SHARE
        reserve = max(0, min(wanted, most - whole.prompt_tokens))
        parts = [
            (t("system"), system),
            (t("history"), history - system),
            (t("draft"), typed - history),
            (t("attachments"), plain - typed),
            (t("tools"), whole.prompt_tokens - plain),
            (t("for the answer"), reserve),
            (t("free"), max(0, most - whole.prompt_tokens - reserve)),
        ]
        rows = [(name, f"{bar(tokens, most)} {tokens:,}") for name, tokens in parts]
        rows.append((t("together"), t("{tokens:,} of {most:,}").format(tokens=whole.prompt_tokens, most=most)))
        left_out = sum(message.is_left_out and not message.is_summary for message in session.branch)
        lines = [
            (f"{own:,}", f"{message['role']}: {words.first_line(message['content'])}")
            for own, message in zip(counts, messages, strict=True)
        ]
        lines.append((f"{left_out:,}", t("messages are left out")))
        sections = [Section(t("Context"), rows), Section(t("Messages"), lines)]
        await self.desk.ask(FactsScreen(t("Ledger"), sections))

    async def _by_message(self, link: Link, messages: list[dict[str, Any]]) -> tuple[int, list[int]]:
        """Return the tokens of a conversation, and what each message adds as it grows. Where a template takes none that
        ends at a message, that one counts with the next."""
        counts: list[int] = []
        before = 0
        for idx in range(len(messages)):
            try:
                tokens = await self._tokens(link, messages[: idx + 1])
            except QLocalError:
                if idx == len(messages) - 1:
                    raise
                tokens = before
            counts.append(tokens - before)
            before = tokens
        return before, counts

    async def _tokens(self, link: Link, messages: list[dict[str, Any]]) -> int:
        count = await link.count(messages) if messages else None
        return 0 if count is None else count.prompt_tokens
