"""The device that layers are run and solved on."""

from __future__ import annotations

import torch

from qlocal.errors import PlanError, UsageError


def choose_device(name: str, needed_bytes: int = 0) -> str:
    """Return `name`, or what `auto` stands for here: the first card with so much free memory, else the CPU.

    UsageError when this machine lacks the device, PlanError when a card that was named has too little room.
    """
    if name == "cpu":
        return name
    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name == "auto":
        return next((card for card in cards if _free_bytes(card) >= needed_bytes), "cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= len(cards):
        raise UsageError(f"--device {name}: torch sees {len(cards)} CUDA devices here")
    free = _free_bytes(cards[number])
    if free < needed_bytes:
        raise PlanError(
            f"--device {name}: {needed_bytes / 1e9:.1f} GB are needed there, {free / 1e9:.1f} GB are free",
            hint="Close what else uses the card, or give --device cpu.",
        )
    return cards[number]


def passed_over(name: str, chosen: str) -> bool:
    """Whether there are cards, and none had the room that `auto` looked for."""
    return name == "auto" and chosen == "cpu" and torch.cuda.device_count() > 0


def _free_bytes(card: str) -> int:
    free: int = torch.cuda.mem_get_info(card)[0]
    return free
