"""The memories that a model may be put into: free now, or named for a machine that is not this one. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qlocal.config import CARD_RESERVE
from qlocal.devices import free_bytes, taken_bytes

CPU = "cpu"
MEMORY_SHARE = 0.92
"""Of the host's free memory; the rest is for Python, libraries and what other programs do meanwhile."""
UNLIMITED_BYTES = 1 << 60
"""Memory of a host that nobody has told."""


@dataclass(frozen=True)
class Place:
    """One entry of `--devices`. free_bytes: before loading; reserve_bytes: of these, not for the model.

    taken_bytes: what others hold beside them. is_limited: more is free, but `--max-memory` forbids it."""

    device: str
    free_bytes: int
    reserve_bytes: int
    taken_bytes: int = 0
    is_limited: bool = False

    @property
    def room(self) -> int:
        """Bytes for weights, cache and scratch; at least one, so that how full it becomes is a number."""
        return max(1, self.free_bytes - self.reserve_bytes)

    @property
    def is_card(self) -> bool:
        return kind_of(self.device) != CPU


def kind_of(device: str) -> str:
    """Return `cpu` or `cuda`, whatever machine a device is of (`node1/cuda:0`)."""
    return device.rpartition("/")[2].partition(":")[0]


def here(
    devices: Sequence[str],
    max_memory: int | None = None,
    card_reserve: int = CARD_RESERVE,
    free: Mapping[str, int] | None = None,
) -> tuple[tuple[Place, ...], Place | None]:
    """Return the places of this machine, and the host where they are cards; UsageError for a device that there is not.

    max_memory: bytes to use at most of every memory. Devices may repeat: then they share its memory evenly. free: what
    other machines have told of devices of theirs."""
    told = free or {}
    cards = [device for device in devices if kind_of(device) != CPU]
    if not cards:
        return _places(devices, max_memory, card_reserve, told), None
    return _places(cards, max_memory, card_reserve, told), _places([CPU], max_memory, card_reserve, told)[0]


def _places(
    devices: Sequence[str], max_memory: int | None, card_reserve: int, told: Mapping[str, int]
) -> tuple[Place, ...]:
    shares = Counter(devices)
    free = {device: told[device] if device in told else free_bytes(device) for device in devices}
    places = []
    for device in devices:
        limit = free[device] if max_memory is None else min(free[device], max_memory)
        made = place(device, limit // shares[device], card_reserve)
        taken = 0 if device in told else taken_bytes(device)
        places.append(replace(made, taken_bytes=taken, is_limited=limit < free[device]))
    return tuple(places)


def place(device: str, free: int, card_reserve: int = CARD_RESERVE) -> Place:
    """Return a place with so much free memory."""
    reserve = free - int(free * MEMORY_SHARE) if kind_of(device) == CPU else card_reserve
    return Place(device, free, reserve)
