"""The memory of NVIDIA cards, asked of the driver. No torch.

Cards are numbered as CUDA numbers them for this process: by their place on the bus, and of those that
CUDA_VISIBLE_DEVICES names where it does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from qlocal.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_HINT = "`qlocal doctor` lists the cards there are."


@dataclass(frozen=True)
class CardMemory:
    """Bytes of one card. What is neither free nor ours is other programs' and the screen's."""

    free: int
    total: int


def number_by_bus() -> None:
    """Let CUDA number cards as the driver does, not the fastest first. Call it before torch is imported."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def card_memory(index: int) -> CardMemory:
    """Return the memory of card `index`; UsageError where there is no driver or no such card."""
    import pynvml  # only where a card was asked for

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise UsageError(
            f"cuda:{index} cannot be used: there is no NVIDIA driver here ({error})",
            hint="Take --devices cpu, or install the driver.",
        ) from error
    try:
        found = pynvml.nvmlDeviceGetMemoryInfo(_handle(pynvml, index))
        return CardMemory(int(found.free), int(found.total))
    except pynvml.NVMLError as error:
        raise UsageError(f"cuda:{index} cannot be used: {error}", hint=_HINT) from error
    finally:
        pynvml.nvmlShutdown()


def _handle(pynvml: Any, index: int) -> Any:
    """Return the driver's name of a card: its number on the bus, or its UUID."""
    visible = os.environ.get(VISIBLE)
    if visible is None:
        count = pynvml.nvmlDeviceGetCount()
        if index >= count:
            raise UsageError(f"cuda:{index} cannot be used: the driver knows {_cards(count)}", hint=_HINT)
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if index >= len(names):
        raise UsageError(
            f"cuda:{index} cannot be used: {VISIBLE}={visible[:80]} shows {_cards(len(names))}", hint=_HINT
        )
    name = names[index]
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def _cards(count: int) -> str:
    return "one card" if count == 1 else f"{count or 'no'} cards"
