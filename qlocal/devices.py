"""What the devices of this machine can hold and compute. No torch: planning and `doctor` must be quick."""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from qlocal.cards import card_memory
from qlocal.errors import UsageError

LARGEST_KEPT_BYTES = 128 << 20
KEPT_BYTES = 512 << 20
LITTLE_BYTES = 128 << 10
_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_NODES = Path("/sys/devices/system/node")
_TASKS = Path("/proc/self/task")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Numbers of glibc's malloc.h."""


def free_bytes(device: str) -> int:
    """Return how much memory of `device` (`cpu`, `cuda:0`, ...) is free; UsageError for an unknown device."""
    if device == "cpu":
        return _free_host_bytes()
    found = re.fullmatch(r"cuda:(\d{1,3})", device)
    if found is None:
        raise UsageError(f"device '{device}' is unknown", hint="Devices are cpu, cuda:0, cuda:1, ...")
    return card_memory(int(found[1])).free


def taken_bytes(device: str) -> int:
    """Return how much memory of a card others hold: programs, a screen; 0 for the host, whose pages can move."""
    if device == "cpu":
        return 0
    memory = card_memory(int(device.removeprefix("cuda:")))
    return memory.total - memory.free


def on_node(device: str, node: int) -> str:
    """Return what a plan over several machines calls a device of machine `node`."""
    return f"node{node}/{device}"


def local_name(device: str) -> str:
    """Return what a device of a plan is called on its own machine."""
    return device.rpartition("/")[2]


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware (AVX512-BF16, AMX, or Arm's BF16)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux: say no, which is always right
        return False
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def default_threads() -> int:
    """Return how many threads compute best: one a physical core of those that this process may use.

    A second thread on a core shares its arithmetic units and caches, and every loop waits for the slowest thread. A
    container's quota of processor time counts as so many cores, rounded down, since threads beyond it are put to sleep.
    """
    if not hasattr(os, "sched_getaffinity"):
        return max(1, psutil.cpu_count(logical=False) or 1)
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    quota = _cgroup_cpus()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def numa_cpus(num_ranks: int) -> list[list[int]] | None:
    """Return for every rank on this machine's CPU the logical CPUs of the NUMA node that it shall compute on.

    None where there is nothing to choose: one node, or ranks that cannot be dealt evenly.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = os.sched_getaffinity(0)
    lists = sorted(_NODES.glob("node[0-9]*/cpulist"), key=lambda path: int(path.parent.name.removeprefix("node")))
    nodes = [sorted(cpus) for path in lists if (cpus := _cpu_list(path) & usable)]
    if len(nodes) < 2 or num_ranks % len(nodes):
        return None
    return [nodes[rank * len(nodes) // num_ranks] for rank in range(num_ranks)]


def compute_on(cpus: list[int]) -> None:
    """Have all threads of this process compute on `cpus`, and take memory beside them from now on."""
    for task in _TASKS.iterdir():
        with suppress(ProcessLookupError):  # a thread that ended just now
            os.sched_setaffinity(int(task.name), cpus)


def _cpu_list(path: Path) -> set[int]:
    """Return the CPUs of a list such as `0-3,8`."""
    cpus: set[int] = set()
    for part in path.read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _siblings(cpu: int) -> str:
    """Return the logical CPUs that share a core with `cpu`, as the kernel writes them; alone where it does not say."""
    path = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _cgroup_cpus() -> float | None:
    """Return the quota of processor time as a number of CPUs, or None where there is none."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def keep_threads_calm() -> None:
    """Let the threads of torch's OpenMP wait without burning the CPU. Call it before torch is imported.

    By default they spin for milliseconds at the end of every operation. Where another program uses the cores as
    well, the spinning thread holds up the one it waits for: decoding was measured 20 times slower. The number
    is about 50 microseconds, longer than the gap between two operations.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def keep_freed_memory() -> None:
    """Let the C library keep blocks below LARGEST_KEPT_BYTES that torch frees, KEPT_BYTES in all, for the next ones.

    By default each comes from the system anew, which clears it page by page: a fifth of the processor time of a
    quantization went there. Where the C library has no such setting, nothing changes.
    """
    _set_malloc({_M_MMAP_THRESHOLD: LARGEST_KEPT_BYTES, _M_TRIM_THRESHOLD: KEPT_BYTES})


def keep_little_freed_memory() -> None:
    """Let the C library give blocks of 128 KiB back when they are freed, and keep two heaps at most for all threads.

    By default it learns from the largest request to keep as much, in a heap a thread: a server grew by 2 KB a request
    over its first thousands. Call it before threads are started.
    """
    _set_malloc({_M_ARENA_MAX: 2, _M_MMAP_THRESHOLD: LITTLE_BYTES, _M_TRIM_THRESHOLD: LITTLE_BYTES})


def _set_malloc(values: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in values.items():
            mallopt(option, value)


def give_back_freed_memory() -> None:
    """Return what was freed to the system, where the C library keeps it: after loading that was a third of a model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _free_host_bytes() -> int:
    """Free memory of the machine, or of the container where that is less."""
    available: int = psutil.virtual_memory().available
    limit, used = (_cgroup_value(name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    # File pages count as used there, but make room when asked.
    return min(available, limit - used + (_cgroup_inactive_file() or 0))


def _cgroup_value(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _cgroup_inactive_file() -> int | None:
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = dict(line.split(maxsplit=1) for line in lines)
    return sum(int(values.get(name, 0)) for name in ("inactive_file", "active_file"))
