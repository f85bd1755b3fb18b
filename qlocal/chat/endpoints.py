"""Servers of others that the user has named in config.toml: `[chat.endpoints.NAME]`. Nothing is asked of them here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qlocal.errors import ConfigError

KEYS = ("url", "model", "key_env", "key_file")
MAX_KEY_BYTES = 1 << 14


@dataclass(frozen=True)
class Endpoint:
    """One server. Its key is read when it is used, from an environment variable or a file, and kept nowhere."""

    name: str
    url: str
    models: tuple[str, ...]
    key_env: str | None = None
    key_file: Path | None = None

    def key(self) -> str | None:
        """Return the key. ConfigError names the variable or the file, never what it holds."""
        if self.key_env is not None:
            found, source = os.environ.get(self.key_env, ""), f"the environment variable {self.key_env}"
        elif self.key_file is not None:
            found, source = _read_key(self.key_file), str(self.key_file)
        else:
            return None
        key = found.strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(f"{source}: expected the key of the endpoint '{self.name}', one line of ASCII")
        return key


def read_endpoints(table: Mapping[str, Any]) -> dict[str, Endpoint]:
    """Read `[chat.endpoints]` of config.toml. ConfigError names the key and what is expected."""
    endpoints = table.get("endpoints", {})
    if not isinstance(endpoints, Mapping):
        raise ConfigError(f"config.toml: chat.endpoints is {endpoints!r:.80}, expected a table for every endpoint")
    return {name: _endpoint(name, values) for name, values in endpoints.items()}


def _endpoint(name: str, values: Any) -> Endpoint:
    where = f"config.toml: chat.endpoints.{name}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r:.80}, expected a table")
    if unknown := sorted(values.keys() - set(KEYS)):
        hint = f"Known keys: {', '.join(KEYS)}. A key itself does not belong into this file."
        raise ConfigError(f"{where}: unknown key '{unknown[0]}'", hint=hint)
    models = values.get("model")
    models = [models] if isinstance(models, str) else models
    if not isinstance(models, list) or not models or not all(isinstance(one, str) and one for one in models):
        raise ConfigError(
            f"{where}: model is missing", hint="Name the model, or a list of them, as that server calls it."
        )
    key_env, key_file = values.get("key_env"), values.get("key_file")
    for field, value in (("key_env", key_env), ("key_file", key_file)):
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"{where}: {field} is {value!r:.80}, expected text")
    if key_env is not None and key_file is not None:
        raise ConfigError(f"{where} has key_env and key_file", hint="Name one of them.")
    url = _url(where, values.get("url"), has_key=key_env is not None or key_file is not None)
    return Endpoint(name, url, tuple(models), key_env, None if key_file is None else Path(key_file).expanduser())


def _url(where: str, value: Any, *, has_key: bool) -> str:
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        host = None if parts is None else parts.hostname
    except ValueError:
        parts = host = None
    if parts is None or not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise ConfigError(f"{where}: url is not the URL of a server", hint="Give one like https://example.org/v1")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{where}: url has a password in it", hint="Use key_env or key_file.")
    if has_key and parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(f"{where}: the key would go to {host} unencrypted", hint="Use https.")
    return str(value)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{path}: the key of an endpoint cannot be read: {error.strerror}") from error
