"""How ranks find each other: by a private file on one machine, by a TCP store over several."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import FileStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from qlocal.errors import EngineError

WAIT_S = 300.0
"""How long ranks wait for each other at the start."""
__all__ = ["Meeting", "Store", "join", "leave"]
_FOR_EVER = timedelta(days=3650)
"""Of a collective: the others wait for rank 0 while nobody asks for anything. Ranks that end are noticed at once."""
_POLL_S = 0.2
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Meeting:
    """Where ranks meet: `path`, a file of their own on one machine, or `host` and `port`.

    prefix: of the keys in a store that others use as well."""

    path: str | None = None
    host: str = ""
    port: int = 0
    prefix: str = "qlocal"

    @property
    def is_local(self) -> bool:
        return self.path is not None or self.host in _LOOPBACK_HOSTS

    def open(self, *, hosts: bool, wait_s: float = WAIT_S) -> Store:
        """Return the store. hosts: this process keeps the TCP store. EngineError where it cannot be had."""
        if self.path is not None:
            return PrefixStore(self.prefix, FileStore(self.path))
        if not hosts:
            _await_listener(self.host, self.port, wait_s)
        try:
            store = TCPStore(
                self.host, self.port, is_master=hosts, timeout=timedelta(seconds=wait_s), wait_for_workers=False
            )
        except (RuntimeError, ValueError, OSError) as error:
            done = "opened" if hosts else "used"
            raise EngineError(
                f"the rendezvous at {self.host}:{self.port} could not be {done}: {_first_line(error)}",
                hint="Its port must be free on node 0, and no other program's.",
            ) from error
        return PrefixStore(self.prefix, store)


def join(meeting: Meeting, store: Store, rank: int, size: int, devices: Sequence[str]) -> dist.ProcessGroup:
    """Become rank `rank` of `size`, when all the others do. devices: of the ranks, which says who carries tensors.

    One machine's ranks listen on the loopback alone. EngineError when they do not come together.
    """
    if meeting.is_local:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if any(device.startswith("cuda") for device in devices) else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_FOR_EVER)
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"rank {rank} could not join the others: {_first_line(error)}") from error
    group = dist.group.WORLD
    assert group is not None, "init_process_group has made it"
    return group


def _await_listener(host: str, port: int, wait_s: float) -> None:
    """Return when somebody listens there; torch's own waiting prints pages."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            socket.create_connection((host, port), timeout=min(5.0, wait_s)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"nobody is at the rendezvous {host}:{port} after {wait_s:g} s: {error}",
                    hint="Start node 0, and let its port be reached.",
                ) from error
        time.sleep(_POLL_S)


def leave() -> None:
    """Give up what `join` made, where there is any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
