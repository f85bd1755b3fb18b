"""What is known: speeds and memory now, what loading would take, the report of the checkpoint, the server's log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from qlocal.chat import facts, machine, words
from qlocal.chat.actions import Action
from qlocal.chat.facts import Section
from qlocal.chat.features.base import Feature
from qlocal.chat.features.turns import Turns
from qlocal.chat.languages import t
from qlocal.chat.link_state import Link
from qlocal.chat.origin import origin_section
from qlocal.chat.screens.facts import FactsScreen
from qlocal.chat.screens.log import LogScreen
from qlocal.chat.screens.models import ModelScreen
from qlocal.chat.store.records import Message, Role

MAX_REPORT_BYTES = 16 << 20


class Knowing(Feature):
    """Screens to look at; only the plan's one changes anything, by loading what was planned."""

    ACTIONS: ClassVar = (
        Action("statistics", "f3", "Statistics", "Speeds, cache, memory by device, planned against actual"),
        Action("plan", "", "Plan", "What a model would take, before it is loaded", is_shown=False),
        Action("report", "", "Report", "How the checkpoint was quantized, and what that cost", is_shown=False),
        Action("log", "f7", "Log", "The server's log", is_shown=False),
    )

    def statistics(self) -> None:
        self.desk.start(self._show_statistics(), "choose")

    def plan(self) -> None:
        if self.desk.link is None:
            self.desk.say(words.NO_LINK_YET)
        else:
            self.desk.start(self._plan(self.desk.link), "choose")

    def report(self) -> None:
        path = self.desk.link_state.path
        if path is None:
            self.desk.say(words.NEEDS_OWN_SERVER)
        else:
            self.desk.start(self._report(Path(path)), "choose")

    def log(self) -> None:
        if self.desk.link is None or self.desk.link.log_path is None:
            self.desk.say(words.NO_LOG)
        else:
            self.desk.start(self._log(self.desk.link.log_path), "choose")

    async def _show_statistics(self) -> None:
        await self.desk.ask(FactsScreen(t(words.STATISTICS), await self._statistics(), self._statistics))

    async def _statistics(self) -> Sequence[Section]:
        status, branch = self.desk.link_state.status, self.desk.session.branch
        devices = [part["device"] for part in (status.plan or {}).get("devices", ())] if status is not None else []
        now = await asyncio.to_thread(machine.look, devices, None if status is None else status.pid)
        chosen = self._chosen()
        shown = chosen or next((message for message in reversed(branch) if message.role is Role.ASSISTANT), None)
        return [
            facts.model_section(status, self.desk.link_state.model),
            facts.answer_section(shown, is_chosen=chosen is not None),
            facts.conversation_section(branch),
            facts.memory_section(status, now),
            origin_section(shown),
        ]

    def _chosen(self) -> Message | None:
        """Return the answer that the cursor is on."""
        at = self.desk.message_at_cursor
        return at if at is not None and at.role is Role.ASSISTANT else None

    async def _plan(self, link: Link) -> None:
        chosen = await self.desk.ask(ModelScreen(await link.choices(), self.desk.link_state.model))
        if chosen is None:
            return
        told = await link.plan(chosen)
        if told is None:
            self.desk.say(words.NEEDS_OWN_SERVER)
            return
        sections = [
            Section(t(words.PLAN), [("", line) for line in told.table]),
            Section(t(words.NOTES), [("", note) for note in told.notes]),
        ]
        if await self.desk.ask(FactsScreen(chosen, sections, enter=t(words.LOADS_IT))):
            self.desk.feature(Turns).end()
            await link.select(chosen)

    async def _report(self, path: Path) -> None:
        report = await asyncio.to_thread(_read_report, path)
        if report is None:
            self.desk.say(words.NO_REPORT)
        else:
            await self.desk.ask(FactsScreen(t(words.REPORT), facts.report_sections(report)))

    async def _log(self, path: Path) -> None:
        await self.desk.ask(LogScreen(path))


def _read_report(checkpoint: Path) -> dict[str, Any] | None:
    """Return the report that `quantize` left in a folder or beside a GGUF file; None where there is none."""
    is_gguf = checkpoint.suffix == ".gguf"
    path = checkpoint.with_suffix(".json") if is_gguf else checkpoint / "quantization_report.json"
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            return None
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) and isinstance(report.get("bits_per_weight"), int | float) else None
