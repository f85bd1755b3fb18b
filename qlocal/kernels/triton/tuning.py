"""Configurations that were measured on this machine's cards, kept in a file of the user's cache folder.

`benchmarks/gpu_check` measures and writes them; without a file every kernel has a default, and nothing is ever tried
out while somebody waits for a token."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

Configs = Mapping[str, Mapping[str, int]]
"""Fields of a configuration by kernel and what it is for: `gemv 8`, `gemm 512`, `attend 16`."""
_FIELDS = frozenset({"num_warps", "num_stages", "programs"})
"""What may be measured: tiles have their sizes for the sake of registers and shared memory, which the compile report
holds."""
_LARGEST = 64
_tried: dict[str, Mapping[str, int]] = {}
_log = logging.getLogger(__name__)


def path_of(card_name: str) -> Path:
    """Return the file for cards of a name."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "qlocal" / f"kernels-{re.sub('[^a-z0-9]+', '-', card_name.lower())}.json"


def measured(kernel: str, what: int, device: torch.device | None) -> dict[str, int]:
    """Return the measured fields of a configuration for a device, none where nobody has measured."""
    name = f"{kernel} {what}"
    if name in _tried:
        return dict(_tried[name])
    if device is None or device.type != "cuda":
        return {}
    return dict(_configs_of(device).get(name, {}))


def try_out(configs: Configs) -> None:
    """Let kernels take these configurations, whatever was measured before; with none, again what was."""
    _tried.clear()
    _tried.update(configs)


def write(card_name: str, configs: Configs) -> Path:
    """Keep measured configurations, whole or not at all. OSError where the folder cannot be written."""
    path = path_of(card_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(configs, indent=1), encoding="utf-8")
    unfinished.replace(path)
    return path


def read(path: Path) -> Configs:
    """Return what a file says; nothing where there is none, or where it is not what `write` wrote."""
    try:
        configs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read, so kernels keep their defaults: %s", path, error)
        return {}
    if not _is_valid(configs):
        _log.warning("%s holds no configurations, so kernels keep their defaults", path)
        return {}
    found: Configs = configs
    return found


def _is_valid(configs: object) -> bool:
    if not isinstance(configs, dict):
        return False
    fields = [fields for fields in configs.values() if isinstance(fields, dict)]
    items = [item for each in fields for item in each.items()]
    return len(fields) == len(configs) and all(
        name in _FIELDS and type(value) is int and 0 < value <= _LARGEST for name, value in items
    )


@cache
def _configs_of(device: torch.device) -> Configs:
    return read(path_of(torch.cuda.get_device_name(device)))
