"""Options as frozen dataclasses, from flags, then environment (QLOCAL_...), then config.toml, then defaults.

`Settings` also remembers which source won, for `qlocal doctor`. Reading the file happens once, at start.
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from qlocal.errors import ConfigError

APP = "qlocal"
CHAT = "chat"
"""The table of config.toml that the chat reads itself."""
STORED = "stored"
HEAD_CHOICES = (STORED, "q8_0", "q6_k")
"""How an output head of 16 bits is held: as it is stored, or quantized at load."""
SPLIT_CHOICES = ("auto", "layer", "tensor")
"""How a model is divided over several devices. layer: some of the layers each, in one process. tensor: a part of all
layers each, a process a device. auto: tensor, where the model can be cut so."""


@dataclass(frozen=True)
class Nodes:
    """Machines that hold one model together. rank: which of `count` this is; node 0 serves.

    host, port: where they meet. has_store: another program (torchrun) keeps the store there. prefix: of its keys."""

    count: int
    rank: int
    host: str
    port: int
    has_store: bool = False
    prefix: str = "qlocal"


PREFILL_CHUNK = 512
"""Most prompt tokens of one step; bounds the scratch memory."""
CARD_RESERVE = 512 << 20
"""Bytes of a card that are left alone: CUDA's own context, its libraries, the modules of kernels, fragmentation."""
KV_TYPES = ("f16", "q8", "q4")
"""How keys and values may be held, by falling size."""
AUTO = "auto"
"""In place of types: the first of f16, q8, q8 with q4, and q4 that the context fits with."""
SESSIONS_BYTES = 4 << 30
"""Of disk, for the keys and values of conversations that go on after the server was ended."""
FROM_CONTEXT, NO_DRAFT = "context", "none"
"""In place of a draft model: next tokens are guessed from what the context has said before, or not at all."""
OFFLOAD_CHOICES = ("auto", "none", "layers", "experts")
"""What may compute on the CPU where cards are full. auto: nothing, unless the cards cannot hold the model with a useful
context; then the experts of a mixture, else whole layers."""


@dataclass(frozen=True)
class EngineOptions:
    """How a model is loaded. `max_context` None takes what fits; `max_memory` in bytes. head: one of HEAD_CHOICES, or
    None where it does not matter: a server that holds the model keeps its head, a new one holds it as stored. offload:
    one of OFFLOAD_CHOICES. split: one of SPLIT_CHOICES. nodes: None for this machine alone. kv: how the cache holds
    keys and values, as `--kv` takes it; None as head. draft: who guesses next tokens: FROM_CONTEXT, NO_DRAFT or a
    model; None as head, a new server then guesses from the context. sessions: the folder where a server keeps
    conversations, None for nowhere; sessions_bytes: at most so many there. host_cache_bytes: beside cards, for what
    their cache has no room for."""

    devices: tuple[str, ...] = ("cpu",)
    max_context: int | None = None
    slots: int = 8
    dtype: str = "bfloat16"
    kernels: str = "auto"
    threads: int | None = None
    max_memory: int | None = None
    head: str | None = None
    kv: str | None = None
    offload: str = "auto"
    prefill_chunk: int = PREFILL_CHUNK
    card_reserve: int = CARD_RESERVE
    split: str = "auto"
    nodes: Nodes | None = None
    draft: str | None = None
    sessions: Path | None = None
    sessions_bytes: int = SESSIONS_BYTES
    host_cache_bytes: int = 0

    def named(self) -> dict[str, Any]:
        """Return what POST /qlocal/load is told beside the model: what is left open here stays as the server runs."""
        found = {name: getattr(self, name) for name in ("max_context", "head", "kv", "draft")}
        found |= {name: getattr(self, name) for name in ("split", "offload") if getattr(self, name) != AUTO}
        return {"devices": list(self.devices)} | {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens: TCP on the loopback when `port` is given (0: any free one), else a Unix socket.

    model: loaded at start, or None. idle_exit_s: end after so long without a client; None stays.
    allowed_origins: values of the Origin header that may read answers; none by default.
    """

    model: str | None = None
    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    token_file: Path | None = None
    allowed_origins: tuple[str, ...] = ()
    idle_exit_s: float | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class ChatOptions:
    """What `qlocal chat` opens with. `endpoint` replaces the own server by any OpenAI-compatible one."""

    model: str | None = None
    endpoint: str | None = None
    token: str | None = None
    context: int | None = None
    devices: tuple[str, ...] = ("cpu",)
    head: str | None = None
    split: str = "auto"
    kv: str | None = None
    draft: str | None = None
    system: str | None = None


@dataclass(frozen=True)
class RunOptions:
    """One question and its answer on standard output. Absent sampling fields leave it to the model's makers."""

    model: str
    prompt: str
    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    json: bool = False
    stats: bool = False
    truncate: str | None = None
    save: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class Settings:
    """What environment and config.toml may set. `sources` names the winner of each field."""

    home: Path
    runtime: Path
    sessions: Path
    devices: tuple[str, ...] = ("cpu",)
    max_context: int | None = None
    threads: int | None = None
    idle_exit_s: float = 900.0
    hub_endpoint: str = "https://huggingface.co"
    sources: Mapping[str, str] = field(default_factory=dict)


def config_folder() -> Path:
    """Return the folder of the user's config.toml and models.toml; QLOCAL_CONFIG moves it."""
    override = os.environ.get("QLOCAL_CONFIG")
    return Path(override) if override else platformdirs.user_config_path(APP)


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings; `flags` (absent: None) win over environment, config.toml and defaults.

    Raises ConfigError naming the file or variable, the key and the value.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    layers: list[tuple[str, Mapping[str, Any]]] = [("flag", given), ("environment", _environment())]
    path = config_folder() / "config.toml"
    layers.append((path.name, _file_values(path)))
    layers.append(("default", _defaults()))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in _PARSERS:
        source, value = next((label, layer[name]) for label, layer in layers if name in layer)
        values[name], sources[name] = value, source
    return Settings(**values, sources=sources)


def _defaults() -> dict[str, Any]:
    home = platformdirs.user_data_path(APP) / "models"
    defaults = {f.name: f.default for f in fields(Settings) if f.name not in ("home", "runtime", "sessions", "sources")}
    sessions = platformdirs.user_cache_path(APP) / "sessions"
    return {**defaults, "home": home, "runtime": _default_runtime(), "sessions": sessions}


def _default_runtime() -> Path:
    if "XDG_RUNTIME_DIR" in os.environ:
        return platformdirs.user_runtime_path(APP)
    return Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}"


def _environment() -> dict[str, Any]:
    found = {}
    for name, (variable, parse) in _PARSERS.items():
        if text := os.environ.get(variable):
            found[name] = _parsed(parse, text, variable)
    if "home" in found and "runtime" not in found:
        # A model folder of one's own comes with a server of its own: two of them must not meet at one socket.
        found["runtime"] = found["home"] / "run"
    if "home" in found and "sessions" not in found:
        found["sessions"] = found["home"] / "run" / "sessions"
    return found


def chat_table() -> dict[str, Any]:
    """Return what the user's config.toml says of the chat, as it stands there. ConfigError where it is no table."""
    path = config_folder() / "config.toml"
    table = _read_toml(path).get(CHAT, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {CHAT} is {table!r}, expected a table")
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from error


def _file_values(path: Path) -> dict[str, Any]:
    raw = _read_toml(path)
    if unknown := sorted(raw.keys() - _PARSERS.keys() - {CHAT}):
        raise ConfigError(f"{path}: unknown key '{unknown[0]}'", hint=f"Known keys: {', '.join(sorted(_PARSERS))}.")
    named = {name: value for name, value in raw.items() if name != CHAT}
    return {name: _parsed(_PARSERS[name][1], value, f"{path}: {name}") for name, value in named.items()}


def _parsed(parse: Callable[[Any], Any], value: Any, where: str) -> Any:
    try:
        return parse(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where} is {value!r}: {error}") from error


def _folder(value: Any) -> Path:
    if not isinstance(value, str):
        raise TypeError("expected a path")
    return Path(value).expanduser().absolute()


def device_list(value: Any) -> tuple[str, ...]:
    """Return the names of `cuda:0,cpu`, or of a list of them; ValueError for anything else."""
    names = value.split(",") if isinstance(value, str) else list(value)
    devices = tuple(str(name).strip() for name in names)
    for device in devices:
        kind, _, index = device.partition(":")
        if device != "cpu" and not (kind == "cuda" and index.isdecimal()):
            raise ValueError(f"'{device}' is no device; expected cpu or cuda:0, cuda:1, ...")
    return devices


def kv_types(text: str) -> tuple[str, str]:
    """Return the types of keys and values: `q8` is both, `q8,q4` K and V, `auto` twice itself; ValueError else."""
    types = text.split(",")
    if text != AUTO and (len(types) > 2 or not set(types) <= set(KV_TYPES)):
        raise ValueError(f"'{text[:40]}' is none of {', '.join((*KV_TYPES, AUTO))}, nor two types with a comma")
    return types[0], types[-1]


def _count(value: Any) -> int:
    number = int(value)
    if isinstance(value, bool) or number < 1:
        raise ValueError("expected a whole number above 0")
    return number


def _seconds(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 < number < 1e9:
        raise ValueError("expected seconds above 0")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("expected text")
    return value


_PARSERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "home": ("QLOCAL_HOME", _folder),
    "runtime": ("QLOCAL_RUNTIME", _folder),
    "sessions": ("QLOCAL_SESSIONS", _folder),
    "devices": ("QLOCAL_DEVICES", device_list),
    "max_context": ("QLOCAL_MAX_CONTEXT", _count),
    "threads": ("QLOCAL_THREADS", _count),
    "idle_exit_s": ("QLOCAL_IDLE_EXIT_S", _seconds),
    "hub_endpoint": ("QLOCAL_HUB_ENDPOINT", _text),
}
