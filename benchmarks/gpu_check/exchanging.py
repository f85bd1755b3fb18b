"""How long does a sum over two ranks take through host memory, and does it stay right in recorded steps?

One card plays both ranks, a stream each: what it measures is the way over PCIe and back, on one card's own lanes, with
both ranks started by one host. Two cards may be quicker or slower.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_check.place import Place
from benchmarks.gpu_check.results import Cell, Table
from qlocal.kernels.triton.exchange import SLOTS, Mailbox, exchange_add_norm
from qlocal.parallel.host_exchange import ROWS

WIDTHS = {"qwen2.5-72b": 8192, "qwen2.5-0.5b": 896}
A_TOKEN = 160
"""Exchanges of a token of the 72B: two a layer."""
REPLAYS = 10_000
RANKS = 2


def run(place: Place) -> Table:
    if place.is_rehearsal:
        return Table("Sums over two ranks through host memory", ("not rehearsed: two ranks need two streams",), [])
    rows: list[tuple[Cell, ...]] = []
    failed: list[str] = []
    for name, width in WIDTHS.items():
        for tokens in (1, 8):
            pair = _Pair(place, width, tokens)
            one_us, is_right = pair.replayed(1, REPLAYS)
            many_us, is_still_right = pair.replayed(A_TOKEN, REPLAYS // A_TOKEN)
            rows.append((name, tokens, 2 * width * tokens / 1024, one_us, many_us))
            if not (is_right and is_still_right):
                failed.append(f"the sums of {tokens} tokens of {name} are wrong")
    columns = ("width of", "tokens", "KiB a rank", "one a graph, us", f"{A_TOKEN} a graph, us each")
    notes = (f"Two streams of one process on one card; {REPLAYS:,} exchanges of each kind, with residual and norm.",)
    return Table("Sums over two ranks through host memory", columns, rows, notes, tuple(failed))


class _Pair:
    """Two ranks on one card."""

    def __init__(self, place: Place, width: int, tokens: int) -> None:
        self._device = place.device
        packets = torch.zeros(RANKS, SLOTS, ROWS, width // 2, dtype=torch.int64, pin_memory=True)
        on_card = {"device": place.device}
        self._mailboxes = [
            Mailbox(packets, torch.zeros(ROWS, dtype=torch.int32, **on_card), rank, torch.bfloat16)
            for rank in range(RANKS)
        ]
        self._streams = [torch.cuda.Stream(place.device) for _ in range(RANKS)]
        self._parts = [torch.full((1, tokens, width), float(rank + 1), **on_card) for rank in range(RANKS)]
        self._residuals = [torch.zeros(tokens, width, **on_card) for _ in range(RANKS)]
        self._weight = torch.ones(width, **on_card)

    def replayed(self, count: int, replays: int) -> tuple[float, bool]:
        """Replay graphs of `count` exchanges on both ranks; return microseconds of one, and whether all is right."""
        self._both(lambda rank: self._exchange(rank))  # compiles
        graphs = [self._recorded(rank, count) for rank in range(RANKS)]
        for residual in self._residuals:
            residual.zero_()
        torch.cuda.synchronize(self._device)
        taken = []
        for _ in range(replays):
            start = time.perf_counter()
            self._both(lambda rank: graphs[rank].replay())
            taken.append(time.perf_counter() - start)
        expected = float(count * replays * sum(range(1, RANKS + 1)))
        is_right = all(bool((residual == expected).all()) for residual in self._residuals)
        return 1e6 * statistics.median(taken) / count, is_right

    def _recorded(self, rank: int, count: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._streams[rank]):
            for _ in range(count):
                self._exchange(rank)
        return graph

    def _exchange(self, rank: int) -> None:
        mailbox, parts = self._mailboxes[rank], self._parts[rank]
        exchange_add_norm(self._residuals[rank], parts, self._weight, 1e-6, torch.bfloat16, mailbox)

    def _both(self, work: Callable[[int], object]) -> None:
        """Do work of both ranks side by side, and wait for both."""
        for rank, stream in enumerate(self._streams):
            with torch.cuda.stream(stream):
                work(rank)
        torch.cuda.synchronize(self._device)
