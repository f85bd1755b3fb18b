"""What the model may call: choosing tools, and the question for a yes before they do anything."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

from qlocal import config
from qlocal.chat import thinking, words
from qlocal.chat.actions import Action
from qlocal.chat.answer import Begun
from qlocal.chat.desk import Desk
from qlocal.chat.events import AnswerEvent
from qlocal.chat.features.base import Feature
from qlocal.chat.languages import t
from qlocal.chat.link_state import Link
from qlocal.chat.screens.approval import ApprovalScreen
from qlocal.chat.screens.toolbox import Offer, ToolboxScreen
from qlocal.chat.tools.approvals import Approvals, Verdict
from qlocal.chat.tools.base import Tool, ToolCall
from qlocal.chat.tools.calculator import Calculator
from qlocal.chat.tools.calls import REFUSED, offered, with_tools
from qlocal.chat.tools.files import FileSearch
from qlocal.chat.tools.settings import ToolSettings, read_settings
from qlocal.chat.tools.shell import Shell


class Tools(Feature):
    """None is offered to a model until the user marks it. A yes holds within one conversation at most."""

    ACTIONS: ClassVar = (Action("tools", "", "Tools", "Which tools the model may call", is_shown=False),)

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._approvals = Approvals()
        self._conversation_id: int | None = None
        self._tools: dict[str, Tool] = {}
        self._servers: list[str] = []

    def on_conversation(self) -> None:
        if self.desk.session.conversation_id != self._conversation_id:
            self._approvals.forget()

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools of our own that a request offers; those of MCP servers are known once these are started."""
        return offered(list(self._tools.values()))

    def tools(self) -> None:
        self.desk.start(self._choose(), "choose")

    def answer(
        self, link: Link, request: list[dict[str, Any]], options: dict[str, Any], begun: Begun | None
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Return the events of an answer that may call tools."""
        self._conversation_id = self.desk.session.conversation_id
        return self._answer(link, request, options, 0 if begun is None else len(begun.text))

    async def _answer(
        self, link: Link, request: list[dict[str, Any]], options: dict[str, Any], begun_chars: int
    ) -> AsyncGenerator[AnswerEvent, None]:
        def ask(messages: list[dict[str, Any]], wanted: dict[str, Any]) -> AsyncGenerator[AnswerEvent, None]:
            return thinking.as_text(link.answer(messages, wanted))

        async with AsyncExitStack() as servers:
            tools = [*self._tools.values(), *await self._of_servers(servers)]
            async for event in with_tools(ask, request, options, tools, self._allow, begun_chars):
                yield event

    async def _of_servers(self, opened: AsyncExitStack) -> list[Tool]:
        """Start the marked MCP servers for the length of an answer; return the tools that the user has agreed to."""
        found: list[Tool] = []
        if self._servers:
            # The SDK costs a second to import, which only its users shall pay.
            from qlocal.chat.tools import mcp_servers

            pins = mcp_servers.Pins(self.desk.store.path.with_name("mcp-tools.json"))
            commands = read_settings(config.chat_table()).servers
            for name in self._servers:
                for tool in await mcp_servers.start(name, commands[name], opened):
                    if await self._is_agreed(pins, tool):
                        found.append(tool)
        return found

    async def _is_agreed(self, pins: Any, tool: Any) -> bool:
        """Whether a server's tool is what the user saw last; a new or a changed one is shown first."""
        if pins.is_known(tool):
            return True
        call = ToolCall("", tool.name, tool.as_text())
        before = t(words.TOOL_CHANGED if pins.is_changed(tool) else words.TOOL_NEW)
        verdict = await self.desk.ask(ApprovalScreen(call, f"{tool.server}: {before}"))
        if verdict in (Verdict.ONCE, Verdict.CONVERSATION):
            pins.agree(tool)
            return True
        return False

    async def _allow(self, tool: Tool, call: ToolCall) -> str | None:
        if not tool.needs_yes:
            return None
        known = self._approvals.known(tool.name)
        if known is None:
            verdict = await self.desk.ask(ApprovalScreen(call, getattr(tool, "server", t(words.OWN_TOOL))))
            known = self._approvals.note(tool.name, verdict or Verdict.REFUSED)
        return None if known else REFUSED

    async def _choose(self) -> None:
        settings = read_settings(config.chat_table())
        own = {tool.name: tool for tool in _own_tools(settings)}
        offers = [Offer(name, tool.description, name in self._tools) for name, tool in own.items()]
        offers += [
            Offer(f"mcp:{name}", " ".join(command.argv), name in self._servers)
            for name, command in settings.servers.items()
        ]
        chosen = await self.desk.ask(ToolboxScreen(offers, words.tools_hint(settings.folders)))
        if chosen is not None:
            self._tools = {name: tool for name, tool in own.items() if name in chosen}
            self._servers = [name for name in settings.servers if f"mcp:{name}" in chosen]
            self.desk.say(words.tools_now([*self._tools, *self._servers]))


def _own_tools(settings: ToolSettings) -> list[Tool]:
    folders: list[Tool] = [FileSearch(settings.folders)] if settings.folders else []
    return [Calculator(), *folders, Shell(settings.folders[0] if settings.folders else Path.home())]
