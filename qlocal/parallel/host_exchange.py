"""Sums over the cards of one machine through its memory, started by no host: a kernel writes, polls and adds.

Cards of GeForce cannot reach each other's memory, and NCCL takes its way over the host's as well, in several launches.
Made once a model; proven by value before it is used, with NCCL as what is left where it fails.
"""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qlocal.kernels import dispatch
from qlocal.parallel.collectives import Collectives

if TYPE_CHECKING:
    from qlocal.kernels.triton.exchange import Mailbox

log = logging.getLogger(__name__)

ROWS = 16
"""Tokens of a step that are exchanged at once; more take long enough for NCCL not to count."""
FOLDER = Path("/dev/shm")
MAX_RANKS = 4
_PORTABLE_AND_MAPPED = 3
"""Of cudaHostRegister: for every context, at the same address for the card."""
_TEST_PATIENCE = 1 << 20
_TIMED, _WARM = 200, 20


@dataclass(frozen=True, eq=False)
class HostExchange:
    """An exchange that was proven. latency_us: median of one, of one row, as the test took it from the host."""

    mailbox: Mailbox
    latency_us: float

    def takes(self, tokens: int) -> bool:
        """Whether a step of so many tokens is small enough."""
        return tokens <= ROWS

    def add_norm(
        self, stream: Tensor, parts: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor | None:
        """Add up over all ranks, to the residual stream, and norm: as `exchange_add_norm`."""
        from qlocal.kernels.triton.exchange import exchange_add_norm

        return exchange_add_norm(stream, parts, weight, eps, dtype, self.mailbox)


def open_exchange(collectives: Collectives, device: torch.device, width: int) -> HostExchange | None:
    """Make the exchange of all ranks, or return None on all of them where one cannot, which is logged.

    Every rank calls it, and all of them are on this machine. width: of the residual stream.
    """
    why = _why_not(collectives, device, width)
    if not collectives.all_agree(why is None):
        log.info("sums over ranks go by torch.distributed: %s", why or "another rank cannot map the host's memory")
        return None
    packets, reason = _shared_packets(collectives, device, width)
    if not collectives.all_agree(packets is not None):
        log.warning("sums over ranks go by torch.distributed: %s", reason or "another rank cannot map the memory")
        return None
    assert packets is not None, "all have agreed"
    # Triton launches on the current card, and which that is every thread decides for itself.
    with torch.cuda.device_of(torch.empty(0, device=device)):  # type: ignore[no-untyped-call]
        return _proven(collectives, packets, device, width)


def _proven(collectives: Collectives, packets: Tensor, device: torch.device, width: int) -> HostExchange | None:
    from qlocal.kernels.triton.exchange import Mailbox

    turns = torch.zeros(ROWS, dtype=torch.int32, device=device)
    mailbox = Mailbox(packets, turns, collectives.rank, collectives.wire)
    if not collectives.all_agree(_is_right(mailbox, device, width)):
        log.warning("sums over ranks go by torch.distributed: the exchange gave wrong sums in its test")
        return None
    latency_us = _latency_us(mailbox, device, width)
    log.info("sums over ranks go through host memory, %.1f us each", latency_us)
    return HostExchange(mailbox, latency_us)


def _why_not(collectives: Collectives, device: torch.device, width: int) -> str | None:
    if (why := dispatch.why_no_card_kernels(device)) is not None:
        return why
    if collectives.size > MAX_RANKS:
        return f"{collectives.size} ranks, and an exchange is for up to {MAX_RANKS}"
    if width % 2:
        return f"a width of {width} is odd"
    return None if FOLDER.is_dir() else f"{FOLDER} is missing"


def _shared_packets(collectives: Collectives, device: torch.device, width: int) -> tuple[Tensor | None, str | None]:
    """Return the packets of all ranks, zeros, and visible to this rank's device; or why that cannot be."""
    per_row = width // 2 if collectives.wire == torch.bfloat16 else width
    shape = (collectives.size, 2, ROWS, per_row)
    num_bytes = 8 * collectives.size * 2 * ROWS * per_row
    memory, reason = _mapped(collectives, num_bytes)
    if memory is None:
        return None, reason
    packets = torch.frombuffer(memory, dtype=torch.int64).view(shape)
    if device.type == "cuda":
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        code = runtime.cudaHostRegister(packets.data_ptr(), num_bytes, _PORTABLE_AND_MAPPED)
        if int(code) != 0:
            return None, f"cudaHostRegister answers {code}"
    return packets, None


def _mapped(collectives: Collectives, num_bytes: int) -> tuple[mmap.mmap | None, str | None]:
    """Map a new file of host memory that all ranks share; its name is gone before anybody uses it."""
    path = FOLDER / f"qlocal-{secrets.token_hex(16)}"
    is_first = collectives.rank == 0
    if is_first:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.truncate(descriptor, num_bytes)
            finally:
                os.close(descriptor)
        collectives.send(str(path).encode())
    else:
        path = Path(collectives.receive().decode())
    try:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), num_bytes), None
    except (OSError, ValueError) as error:
        return None, f"{FOLDER} cannot be used: {error}"
    finally:
        collectives.wait_for_all()
        if is_first:
            with suppress(OSError):
                path.unlink()


def _is_right(mailbox: Mailbox, device: torch.device, width: int) -> bool:
    """Exchange whole numbers whose sums are known, in every slot and row."""
    from qlocal.kernels.triton.exchange import exchange_add_norm

    size = len(mailbox.packets)
    pattern = torch.arange(width, device=device, dtype=torch.float32).remainder(64)
    is_right = True
    for turn in range(4):
        parts = (pattern + (mailbox.rank + turn)).expand(1, ROWS, width).contiguous()
        stream = torch.zeros(ROWS, width, device=device)
        exchange_add_norm(stream, parts, None, 0.0, torch.float32, mailbox, _TEST_PATIENCE)
        expected = size * (pattern + turn) + sum(range(size))
        is_right = is_right and bool((stream == expected).all())
    return is_right


def _latency_us(mailbox: Mailbox, device: torch.device, width: int) -> float:
    """Return what one exchange of a row takes, one after another on this device."""
    from qlocal.kernels.triton.exchange import exchange_add_norm

    stream, parts = torch.zeros(1, width, device=device), torch.zeros(1, 1, width, device=device)
    is_card = device.type == "cuda"
    timed, warm = (_TIMED, _WARM) if is_card else (3, 0)

    def exchange(count: int) -> None:
        for _ in range(count):
            exchange_add_norm(stream, parts, None, 0.0, torch.float32, mailbox, _TEST_PATIENCE)

    exchange(warm)
    return _median_us(lambda: exchange(timed), timed, is_card)


def _median_us(work: Callable[[], None], count: int, is_card: bool) -> float:
    taken = []
    for _ in range(3):
        if is_card:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if is_card:
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / count)
    return 1e6 * statistics.median(taken)
