"""The device that layers are run on."""

from __future__ import annotations

import torch

from qlocal.errors import UsageError


def choose_device(name: str) -> str:
    """Return `name`, or what `auto` stands for here; UsageError when this machine lacks it."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    number = int(name.partition(":")[2] or 0)
    if name != "cpu" and number >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here")
    return name
