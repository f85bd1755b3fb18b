"""Where the check runs: a card, or the CPU with Triton's interpreter and tiny sizes, to rehearse it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from qlocal.kernels import dispatch


@dataclass(frozen=True)
class Place:
    """A device and the sizes for it."""

    device: torch.device
    is_rehearsal: bool

    @property
    def name(self) -> str:
        return "rehearsal" if self.is_rehearsal else torch.cuda.get_device_name(self.device)

    @cached_property
    def read_gb_per_s(self) -> float:
        """What a sum over more than any cache holds reads in a second, the best of several."""
        data = torch.ones(self.size(1 << 30, 1 << 12), dtype=torch.float32, device=self.device)
        return data.nbytes / self.seconds(lambda: data.sum(), repeats=20) / 1e9

    def size(self, on_card: int, in_rehearsal: int) -> int:
        return in_rehearsal if self.is_rehearsal else on_card

    def seconds(self, work: Callable[[], object], repeats: int) -> float:
        """Return the median time of `work` on the device, after it has run once."""
        work()
        return statistics.median(self.seconds_once(work) for _ in range(self.size(repeats, 1)))

    def synchronize(self) -> None:
        if not self.is_rehearsal:
            torch.cuda.synchronize(self.device)

    def seconds_once(self, work: Callable[[], object]) -> float:
        """Return the time that doing `work` takes on the device."""
        if self.is_rehearsal:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        work()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def rehearsal() -> Place:
    """Let the CPU be a card for the rest of the process. TRITON_INTERPRET stands in the environment already."""
    dispatch._is_card = lambda device: True
    dispatch._missing_for_triton = lambda: None
    torch.cuda.get_device_capability = lambda device=None: (8, 6)
    return Place(torch.device("cpu"), is_rehearsal=True)
