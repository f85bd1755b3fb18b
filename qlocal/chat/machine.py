"""What the machine holds at this moment: memory of cards, of the host and of the server. Asked in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qlocal.errors import QLocalError


@dataclass(frozen=True)
class Machine:
    """Bytes. cards: by device, what is in use and what there is, None where the driver does not tell. server: what the
    server and its engine hold of the host, None where they are not here."""

    host_used: int
    host_total: int
    server: int | None = None
    cards: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)


def look(devices: Iterable[str], server_pid: int | None) -> Machine:
    """Return what is in use now. devices: as a plan names them."""
    import psutil  # 20 ms that the first paint does not need

    from qlocal.devices import local_name

    host = psutil.virtual_memory()
    cards = {device: _card(local_name(device)) for device in devices if local_name(device) != "cpu"}
    return Machine(host.total - host.available, host.total, _resident(server_pid), cards)


def _resident(pid: int | None) -> int | None:
    import psutil

    if pid is None:
        return None
    try:
        server = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (server, *server.children(recursive=True)))
    except psutil.Error:
        return None


def _card(device: str) -> tuple[int, int] | None:
    from qlocal.cards import card_memory

    try:
        memory = card_memory(int(device.removeprefix("cuda:")))
    except (QLocalError, ValueError, ImportError):
        return None
    return memory.total - memory.free, memory.total
