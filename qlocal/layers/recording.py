"""A step recorded once and replayed: one launch from the host instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

Result = TypeVar("Result")


@dataclass(frozen=True)
class Recorded(Generic[Result]):
    """What was recorded. result: tensors that every `replay` writes anew."""

    replay: Callable[[], object]
    result: Result


class Recorder(Protocol):
    """Records work that reads and writes only memory which stays, asks nothing of the device, and takes no decision."""

    def record(self, work: Callable[[], Result]) -> Recorded[Result]:
        """Record `work`, which was done once before: then its kernels are compiled. Recording computes nothing."""
        ...


class CudaRecorder:
    """Records CUDA graphs of one card. They share memory for what lies between their inputs and results: they are
    replayed one after another, and a result holds until the next replay of any."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: torch.cuda._POOL_HANDLE | None = None
        self._stream: torch.cuda.Stream | None = None

    def record(self, work: Callable[[], Result]) -> Recorded[Result]:
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                # torch's own stream for recording belongs to the card that was the first to record.
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            graph = torch.cuda.CUDAGraph()
            # Other threads of this process, which move no memory here, must not spoil a recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        return Recorded(graph.replay, result)
