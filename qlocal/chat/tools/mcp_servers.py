"""Tools of MCP servers, by the official SDK over standard input and output. Imported only where one is used.

What a server says of its tools is foreign, and may change between two starts: a tool is offered to the model only as
the user last saw it, told by a hash of its name, description and schema.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlocal.chat.tools.base import ToolError, limited
from qlocal.chat.tools.settings import ServerCommand
from qlocal.errors import EngineError, UsageError

START_TIMEOUT_S = 20.0
CALL_TIMEOUT_S = 60.0
MAX_TOOLS = 64
MAX_DESCRIPTION_CHARS = 16_384
"""Of a tool, schema included: a longer one would fill the context."""
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER")


@dataclass(frozen=True)
class ServerTool:
    """One tool of one server, which runs."""

    server: str
    remote_name: str
    description: str
    parameters: Mapping[str, Any]
    session: Any
    needs_yes: bool = True

    @property
    def name(self) -> str:
        """What the model calls it: two servers may have tools of one name."""
        return f"{self.server}__{self.remote_name}"

    @property
    def digest(self) -> str:
        """What is pinned."""
        said = [self.remote_name, self.description, self.parameters]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def as_text(self) -> str:
        """Return all that the server says of it, as the JSON of an object."""
        return json.dumps({"description": self.description, "parameters": json.dumps(self.parameters, indent=1)})

    async def run(self, arguments: Mapping[str, Any]) -> str:
        """See `Tool.run`."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await self.session.call_tool(self.remote_name, dict(arguments))
        except TimeoutError as error:
            raise ToolError(f"{self.server} gave no result within {CALL_TIMEOUT_S:g} s") from error
        except Exception as error:  # the SDK raises what the server, its schema and its pipe may cause
            raise ToolError(f"{self.server} failed: {error}") from error
        texts = [part.text for part in getattr(result, "content", []) if isinstance(getattr(part, "text", None), str)]
        text = limited("\n".join(texts).encode("utf-8", "replace"))
        if getattr(result, "is_error", False):
            raise ToolError(text or "the tool failed without saying why")
        return text


class Pins:
    """Which tools the user has agreed to, in a file beside the history."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}  # nothing is agreed to, so everything is asked for
        self._digests: dict[str, str] = found if isinstance(found, dict) else {}

    def is_known(self, tool: ServerTool) -> bool:
        return self._digests.get(tool.name) == tool.digest

    def is_changed(self, tool: ServerTool) -> bool:
        return tool.name in self._digests and not self.is_known(tool)

    def agree(self, tool: ServerTool) -> None:
        """Remember a tool as it is now."""
        self._digests[tool.name] = tool.digest
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(self._digests, indent=1), encoding="utf-8")
        partial.chmod(0o600)
        partial.replace(self._path)


async def start(name: str, command: ServerCommand, opened: AsyncExitStack) -> list[ServerTool]:
    """Start a server and return its tools; `opened` ends it. EngineError where it does not answer as it should."""
    try:
        from mcp import ClientSession, StdioServerParameters, stdio_client
    except ImportError as error:
        raise UsageError("MCP servers need the package `mcp`", hint='Install it: pip install "qlocal[mcp]".') from error
    environment = {key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ} | dict(command.environment)
    parameters = StdioServerParameters(command=command.argv[0], args=command.argv[1:], env=environment)
    # What it says on standard error would be drawn over the screen.
    errors = opened.enter_context(open(os.devnull, "w"))  # noqa: SIM115, PTH123 - the stack closes it
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            streams = await opened.enter_async_context(stdio_client(parameters, errlog=errors))
            session = await opened.enter_async_context(ClientSession(streams[0], streams[1]))
            await session.initialize()
            listed = (await session.list_tools()).tools
    except TimeoutError as error:
        raise EngineError(f"the MCP server {name} did not answer within {START_TIMEOUT_S:g} s") from error
    except Exception as error:  # as above: whatever a stranger's program may cause
        raise EngineError(f"the MCP server {name} cannot be used: {error}") from error
    return [tool for entry in listed[:MAX_TOOLS] if (tool := _tool(name, entry, session)) is not None]


def _tool(server: str, entry: Any, session: Any) -> ServerTool | None:
    """Return a tool; None for one whose name a model could not call, or that says too much."""
    schema = entry.input_schema if hasattr(entry, "input_schema") else entry.inputSchema
    tool = ServerTool(server, str(entry.name), str(entry.description or ""), dict(schema or {}), session)
    is_name = all(c.isascii() and (c.isalnum() or c in "_-") for c in tool.name) and len(tool.name) <= 64
    return tool if is_name and len(tool.as_text()) <= MAX_DESCRIPTION_CHARS else None
