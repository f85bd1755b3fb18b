"""What a loaded model has really taken, to stand beside what was planned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from qlocal.devices import local_name


def used_bytes(devices: Iterable[str]) -> dict[str, int]:
    """Return by device of a plan the bytes in use now: of the host this process's own memory, without what is mapped
    from files; of a card what torch has given out. Devices of other machines and ranks are left out."""
    found: dict[str, int] = {}
    for device in devices:
        if device == "cpu":
            found[device] = _own_memory()
        elif local_name(device) == device and torch.cuda.is_available():
            found[device] = torch.cuda.memory_allocated(device)
    return found


def _own_memory() -> int:
    """Return this process's anonymous memory; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
