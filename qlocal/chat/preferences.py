"""What the user's config.toml says of the chat: the table [chat], and the keys in [chat.keys]."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlocal.chat.actions import Action, closest
from qlocal.chat.endpoints import read_endpoints
from qlocal.chat.library import DEFAULT, SAMPLINGS, SYSTEMS
from qlocal.chat.sampling import parse_fields
from qlocal.chat.theme import NAMES
from qlocal.config import chat_table, config_folder
from qlocal.errors import ConfigError

AUTO = "auto"
LANGUAGES = {AUTO: "", "en": "English", "zh": "中文"}
NO_KEY = ("", "none")


@dataclass(frozen=True)
class Preferences:
    """language: of `LANGUAGES`. theme: of `theme.NAMES`. keys: those of actions by name where they are not the usual
    ones, comma-separated; empty for none. system, sampling: of new conversations, kept under the name `default`."""

    language: str = AUTO
    theme: str = "dark"
    keys: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen_language(self) -> str:
        """The language of `LANGUAGES`, by the locale where none was chosen."""
        if self.language != AUTO:
            return self.language
        locale = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
        return "zh" if locale.startswith("zh") else "en"


def load_preferences(actions: Sequence[Action]) -> Preferences:
    """Return what config.toml says. ConfigError names the file, the key, and what is wrong with it."""
    path, table = config_folder() / "config.toml", chat_table()
    # Those of tools are read where tools are chosen: a folder that is gone must not keep the chat from opening.
    known = ("language", "theme", "keys", "tool_folders", "mcp", "endpoints")
    if unknown := sorted(table.keys() - set(known)):
        raise ConfigError(f"{path}: unknown key 'chat.{unknown[0]}'", hint=closest(unknown[0], known))
    read_endpoints(table)
    language = table.get("language", AUTO)
    if language not in LANGUAGES:
        raise ConfigError(f"{path}: chat.language is {language!r}, expected one of {', '.join(LANGUAGES)}")
    theme = table.get("theme", "dark")
    if theme not in NAMES:
        raise ConfigError(f"{path}: chat.theme is {theme!r}, expected one of {', '.join(NAMES)}")
    keys = _keys(table.get("keys", {}), actions, f"{path}: chat.keys")
    system = SYSTEMS.read(DEFAULT) if SYSTEMS.has(DEFAULT) else None
    sampling = parse_fields(SAMPLINGS.read(DEFAULT)) if SAMPLINGS.has(DEFAULT) else {}
    return Preferences(language, theme, keys, system or None, sampling)


def _keys(table: Any, actions: Sequence[Action], where: str) -> dict[str, str]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}, expected a table of actions and their keys")
    usual = {action.name: action.keys for action in actions}
    for name, keys in table.items():
        if name not in usual:
            raise ConfigError(f"{where}: there is no action '{name}'", hint=closest(name, usual))
        if not isinstance(keys, str):
            raise ConfigError(f'{where}.{name} is {keys!r}, expected keys like "ctrl+t" or "f5,ctrl+t"')
    chosen = {name: "" if keys in NO_KEY else keys for name, keys in table.items()}
    owners: dict[str, list[str]] = defaultdict(list)
    for name, keys in (usual | chosen).items():
        for key in filter(None, (key.strip() for key in keys.split(","))):
            owners[key].append(name)
    for key, names in owners.items():
        if len(names) > 1:
            raise ConfigError(
                f"{where}: {key} is the key of {names[0]} and of {names[1]}",
                hint=f'Give one of them another key, or none: {names[-1]} = "none"',
            )
    return chosen
