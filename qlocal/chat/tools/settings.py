"""What the user's config.toml says of tools: allowed folders, and MCP servers to be started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlocal.errors import ConfigError


@dataclass(frozen=True)
class ServerCommand:
    """How an MCP server is started. environment: variables beside PATH and HOME."""

    argv: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolSettings:
    """`[chat] tool_folders = [...]` and `[chat.mcp.NAME] command = [...]`, `env = {...}`."""

    folders: list[Path]
    servers: dict[str, ServerCommand]


def read_settings(table: Mapping[str, Any]) -> ToolSettings:
    """Read the `chat` table of config.toml. ConfigError names the key and the value."""
    names = table.get("tool_folders", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"config.toml: chat.tool_folders is {names!r:.80}, expected a list of folders")
    folders = [Path(name).expanduser().absolute() for name in names]
    if missing := next((folder for folder in folders if not folder.is_dir()), None):
        raise ConfigError(f"config.toml: chat.tool_folders names {missing}, which is no folder")
    servers = table.get("mcp", {})
    if not isinstance(servers, Mapping):
        raise ConfigError(f"config.toml: chat.mcp is {servers!r:.80}, expected a table for every server")
    return ToolSettings(folders, {name: _server(name, values) for name, values in servers.items()})


def _server(name: str, values: Any) -> ServerCommand:
    where = f"config.toml: chat.mcp.{name}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r:.80}, expected a table")
    if unknown := sorted(values.keys() - {"command", "env"}):
        raise ConfigError(f"{where}: unknown key '{unknown[0]}'", hint="Known keys: command, env.")
    argv, environment = values.get("command"), values.get("env", {})
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        raise ConfigError(f"{where}: command is {argv!r:.80}, expected a list of texts")
    if not isinstance(environment, Mapping) or not all(isinstance(value, str) for value in environment.values()):
        raise ConfigError(f"{where}: env is {environment!r:.80}, expected a table of texts")
    return ServerCommand(argv, dict(environment))
