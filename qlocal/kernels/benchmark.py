"""Measure the kernels: native against reference, beside the rate at which this machine reads memory.

A library for `qlocal bench` and `benchmarks/kernels.py`; prints nothing.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType, row_bytes
from qlocal.kernels import dispatch, large_pages, native
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight

DEFAULT_STORAGES = (
    *("awq", "bf16", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
    *("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"),
)
"""What `run` measures: `awq` stands for AffineWeight (AWQ and GPTQ) with groups of 128."""

_GROUP_SIZE = 128
# Weights of one kind lie one after another and take turns, so that none is found in a cache.
_COLD_BYTES = 512 << 20
# Turns of the loop of `csrc/peak.h`: some milliseconds.
_PEAK_ROUNDS = 50_000


@dataclass(frozen=True)
class Row:
    """One measurement: medians of seconds a product, and the weight bytes and operations (a multiplication and an
    addition a weight and token) that pass in that time.

    share: of `read_bytes_per_s`, the rate at which the same threads read memory just before."""

    storage: str
    tokens: int
    kernel: str
    native_s: float
    reference_s: float
    weight_bytes: int
    operations: int
    read_bytes_per_s: float

    @property
    def speedup(self) -> float:
        return self.reference_s / self.native_s

    @property
    def bytes_per_s(self) -> float:
        return self.weight_bytes / self.native_s

    @property
    def operations_per_s(self) -> float:
        return self.operations / self.native_s

    @property
    def share(self) -> float:
        return self.bytes_per_s / self.read_bytes_per_s


def run(
    storages: Sequence[str] = DEFAULT_STORAGES,
    tokens: Sequence[int] = (1, 8, 64),
    num_rows: int = 2048,
    columns: int = 8192,
    dtype: torch.dtype = torch.bfloat16,
    repeats: int = 5,
    cold_bytes: int = _COLD_BYTES,
) -> list[Row]:
    """Measure every storage with every number of tokens; native and reference take turns.

    columns: a multiple of 256. cold_bytes: how many bytes of weights are cycled through; more than the caches hold."""
    generator = torch.Generator().manual_seed(0)
    read = read_bandwidth(cold_bytes)
    rows = []
    for storage in storages:
        weight = make_weight(storage, num_rows, columns, generator)
        weight_bytes = stored_bytes(weight)
        copies = [_copy(weight) for _ in range(max(1, cold_bytes // weight_bytes))]
        fast = [dispatch.prepare(copy, "cpu", dtype) for copy in copies]
        slow = dispatch.prepare(weight, "cpu", dtype, "reference")
        for count in tokens:
            x = torch.randn((count, columns), generator=generator)
            native_s, reference_s = _alternate(x, fast, slow, repeats)
            kernel = dispatch.kernel_name(fast[0])
            operations = 2 * num_rows * columns * count
            rows.append(Row(storage, count, kernel, native_s, reference_s, weight_bytes, operations, read))
    return rows


def read_bandwidth(num_bytes: int = _COLD_BYTES) -> float:
    """Return the bytes a second at which the kernels' threads read memory, the best of five passes over num_bytes.

    Read by the library where there is one (a product with float32 rows does nothing else), else summed by torch."""
    columns = 8192
    num_rows = max(1, num_bytes // (columns * 4))
    # Pages as strips have them; filled, since untouched ones are all one page that a cache holds.
    data = large_pages.zeros(num_rows * columns * 4).view(torch.float32).view(num_rows, columns).fill_(1)
    library = native.load()
    read: Callable[[], object]
    if isinstance(library, native.Library):
        matrix = native.make_matrix(DenseWeight(data), library)
        x = torch.ones((1, columns))
        read = lambda: native.matmul(x, matrix)  # noqa: E731
    else:
        read = data.sum
    return data.nbytes / min(_time(read) for _ in range(5))


@dataclass(frozen=True)
class Peaks:
    """Operations a second in registers, two a product, on all threads of the kernels."""

    int8: float
    bf16: float


def peak_operations() -> Peaks | None:
    """Return what the CPU multiplies at most with the instruction sets in use, the best of five tries a kind.

    None without the native library."""
    library = native.load()
    if isinstance(library, native.Absent):
        return None
    peak = library.functions.qlocal_peak
    peak.argtypes, peak.restype = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64], ctypes.c_int64

    def best(kind: int) -> float:
        rates = []
        for _ in range(5):
            start = time.perf_counter()
            operations = peak(library.isa, kind, _PEAK_ROUNDS)
            rates.append(operations / (time.perf_counter() - start))
        return float(max(rates))

    return Peaks(int8=best(0), bf16=best(1))


def make_weight(storage: str, num_rows: int, columns: int, generator: torch.Generator) -> Weight:
    """Return a weight of random bits with finite scales: `awq`, `bf16`, `f16`, `f32` or a GGML type's name."""
    if storage in ("bf16", "f16", "f32"):
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[storage]
        return DenseWeight(torch.randn((num_rows, columns), generator=generator).to(dtype))
    if storage == "awq":
        shape = (num_rows, columns // _GROUP_SIZE)
        return AffineWeight(
            codes=_random_bytes((num_rows, columns // 2), generator),
            scales=torch.rand(shape, generator=generator).half(),
            zero_points=_random_bytes(shape, generator) & 15,
            group_size=_GROUP_SIZE,
        )
    ggml_type = GgmlType[storage.upper()]
    blocks = _random_bytes((num_rows, row_bytes(ggml_type, columns)), generator)
    # Clearing one exponent bit of every 16-bit field, whichever of them are scales, keeps all float16 finite.
    return BlockWeight(blocks & 0xBF, ggml_type, columns)


def stored_bytes(weight: Weight) -> int:
    """Bytes of a weight as the format stores it, which is what a product has to read."""
    if isinstance(weight, AffineWeight):
        return weight.codes.nbytes + weight.scales.nbytes + weight.zero_points.nbytes
    return weight.data.nbytes if isinstance(weight, DenseWeight) else weight.blocks.nbytes


def _random_bytes(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def _copy(weight: Weight) -> Weight:
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.data.clone())
    if isinstance(weight, BlockWeight):
        return BlockWeight(weight.blocks.clone(), weight.ggml_type, weight.columns)
    return weight  # prepare copies it


def _alternate(
    x: Tensor, fast: list[dispatch.PreparedWeight], slow: dispatch.PreparedWeight, repeats: int
) -> tuple[float, float]:
    """Return the median seconds of a product with one of `fast` and with `slow`, measured in turns."""
    fast_s, slow_s = [], []
    for _ in range(repeats):
        fast_s.append(_time(lambda: [dispatch.quant_matmul(x, weight) for weight in fast]) / len(fast))
        slow_s.append(_time(lambda: dispatch.quant_matmul(x, slow)))
    return statistics.median(fast_s), statistics.median(slow_s)


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
