"""The catalogue `models.toml` as objects, and what MODEL on a command line means. No torch, no network.

The user's own models.toml in the configuration folder is laid over the shipped one, field by field.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlocal.config import FROM_CONTEXT, NO_DRAFT, config_folder, load_settings
from qlocal.errors import ConfigError, UsageError
from qlocal.models import by_model_type
from qlocal.models.base import Architecture, ModelConfig
from qlocal.models.config_fields import parse_config

FILE_NAME = "models.toml"
FORMATS = ("awq", "gptq", "gguf", "bf16")
"""Sub-folders of a model folder in the order in which a plain name takes them."""


@dataclass(frozen=True)
class Entry:
    """One catalogue entry; the fields are the keys of models.toml, which describes them at its top."""

    name: str
    repository: str
    licence: str
    context: int
    raw_config: Mapping[str, Any]
    where: str
    recommended: Mapping[str, str] = field(default_factory=dict)
    yarn: Mapping[str, Any] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    unpadded_sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        return by_model_type(str(self.raw_config.get("model_type")), where=self.where)

    def config(self) -> ModelConfig:
        """Return the geometry, checked like any config.json."""
        return parse_config(self.raw_config, self.architecture, self.where)


def entries() -> dict[str, Entry]:
    """Return all entries by name, the user's laid over the shipped ones. ConfigError names file, entry and key."""
    merged = _tables(shipped_file())
    sources = dict.fromkeys(merged, shipped_file())
    own = config_folder() / FILE_NAME
    for name, table in _tables(own).items():
        merged[name] = _laid_over(merged.get(name, {}), table)
        sources[name] = own
    return {name: _entry(name, table, f"{sources[name].name}: {name}") for name, table in merged.items()}


def entry(name: str) -> Entry:
    """Return the entry called `name`, in any case; UsageError with the nearest name when there is none."""
    known = entries()
    found = known.get(name.lower())
    if found is None:
        raise UsageError(f"'{name}' is not in the catalogue", hint=nearest(name, known))
    return found


def resolve_draft(draft: str, home: Path) -> str:
    """Return what `--draft` says: in place of a model one of its words, else the path as `resolve` finds it."""
    return draft if draft in (FROM_CONTEXT, NO_DRAFT) else str(resolve(draft, home))


def resolve(model: str, home: Path | None = None) -> Path:
    """Return the checkpoint that MODEL means: a path, or a name in the model folder `home`.

    UsageError says what was looked for and the nearest name.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path.absolute()
    home = home or load_settings().home
    if "\0" in model or ".." in path.parts or path.is_absolute():
        raise UsageError(f"there is no checkpoint at '{model}'")
    for candidate in (home / model, home / f"{model}.gguf", home / model.lower()):
        if candidate.exists():
            return _inside(candidate)
    if model.lower() in entries():
        raise UsageError(
            f"'{model}' is in the catalogue, but not in {home}",
            hint=f"Get it with `qlocal pull {model}`, then `quantize {model} ...`.",
        )
    raise UsageError(f"there is no model '{model}'", hint=nearest(model, [*installed(home), *entries()]))


def installed(home: Path | None = None) -> dict[str, Path]:
    """Return the checkpoints in the model folder by the name that `resolve` takes."""
    home = home or load_settings().home
    if not home.is_dir():
        return {}
    return {str(path.relative_to(home)).removesuffix(".gguf"): path for path in sorted(_checkpoints(home, depth=2))}


def beside(path: Path) -> dict[str, Path]:
    """Return the checkpoints in the folder in which a checkpoint lies, itself included, by their display names."""
    try:
        return {display_name(found): found for found in sorted(_checkpoints(path.parent, depth=1))}
    except OSError:  # a folder that may be entered, but not listed
        return {display_name(path): path}


def display_name(path: Path) -> str:
    """Return what a checkpoint is called on screen and by clients; `awq` alone would say nothing."""
    name = path.name.removesuffix(".gguf")
    return f"{path.parent.name}/{name}" if name in FORMATS else name


def nearest(name: str, known: Mapping[str, object] | list[str]) -> str:
    """Return a hint with the nearest of the known names, or where to see them all."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else "`qlocal models list` shows the names there are."


def shipped_file() -> Path:
    """Return the catalogue beside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    inside = package / FILE_NAME
    return inside if inside.is_file() else package.parent / FILE_NAME


def _inside(path: Path) -> Path:
    """Return the checkpoint itself: a model folder may hold several formats, of which the first is taken."""
    if path.is_file() or _is_checkpoint(path):
        return path
    below = sorted(_checkpoints(path, depth=2), key=_preference)
    if not below:
        raise UsageError(f"{path} holds no checkpoint", hint="Expected config.json with safetensors, or a .gguf file.")
    return below[0]


def _preference(path: Path) -> tuple[int, str]:
    kind = "gguf" if path.suffix == ".gguf" else path.name
    return (FORMATS.index(kind) if kind in FORMATS else len(FORMATS), str(path))


def _checkpoints(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.endswith(".partial"):
            continue
        if path.suffix == ".gguf" or _is_checkpoint(path):
            yield path
        elif path.is_dir() and depth > 1:
            yield from _checkpoints(path, depth - 1)


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file()


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not readable as TOML: {error}") from error
    for name, table in raw.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: '{name}' stands outside an entry", hint='An entry begins with ["name"].')
    return {name.lower(): table for name, table in raw.items()}


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both_tables = isinstance(value, dict) and isinstance(under, dict)
        merged[key] = _laid_over(under, value) if both_tables else value  # type: ignore[arg-type]  # just looked
    return merged


_KINDS: dict[str, type] = {
    "repository": str,
    "licence": str,
    "context": int,
    "config": dict,
    "recommended": dict,
    "yarn": dict,
    "sizes": dict,
    "unpadded_sizes": dict,
}
_REQUIRED = ("repository", "licence", "context", "config")


def _entry(name: str, table: Mapping[str, Any], where: str) -> Entry:
    for key, value in table.items():
        if key not in _KINDS:
            raise ConfigError(f"{where}: unknown key '{key}'", hint=nearest(key, list(_KINDS)))
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} is {value!r}, expected {_KINDS[key].__name__}")
    for key in _REQUIRED:
        if key not in table:
            raise ConfigError(f"{where}: {key} is missing")
    values = {key: value for key, value in table.items() if key != "config"}
    return Entry(name=name, raw_config=table["config"], where=where, **values)
