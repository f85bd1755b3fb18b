"""What this machine offers and what qlocal makes of it: for `qlocal doctor` and for reports of mistakes.

Torch is imported only to ask the kernels; a part that fails says so instead of hiding the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import qlocal
from qlocal import catalog, launch
from qlocal.config import Settings, config_folder, load_settings
from qlocal.errors import QLocalError
from qlocal.parallel.probe import measure

PACKAGES = ("torch", "triton", "numpy", "safetensors", "tokenizers", "textual", "starlette", "uvicorn")
ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")

NO_LINK = "fewer than two cards"
Json = dict[str, Any]


def examine() -> Json:
    """Return everything as one JSON object; no part raises."""
    parts: dict[str, Callable[[], Any]] = {
        "versions": _versions,
        "cpu": _cpu,
        "memory": _memory,
        "gpus": _gpus,
        "links": _links,
        "kernels": _kernels,
        "settings": _settings,
        "catalogue": lambda: f"{len(catalog.entries())} entries",
        "server": _server,
    }
    return {name: _guarded(part) for name, part in parts.items()}


def _guarded(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except (QLocalError, OSError, ImportError) as error:
        return {"error": str(error)}


def _versions() -> Json:
    versions = {"qlocal": qlocal.__version__, "python": platform.python_version(), "system": platform.platform()}
    return versions | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> Json:
    model, flags = "unknown", set[str]()
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return {
        "model": model,
        "cores": psutil.cpu_count(logical=False),
        "usable_threads": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in ISA_FLAGS if flag in flags],
        "missing": [flag for flag in ISA_FLAGS if flag not in flags],
    }


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()


def _memory() -> Json:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {"total": memory.total, "available": memory.available, "swap_total": swap.total, "swap_free": swap.free}


def _gpus() -> list[Json] | str:
    import pynvml  # loads the driver's library

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"none: {error}"
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(pynvml: Any, index: int) -> Json:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = pynvml.nvmlDeviceGetName(handle)
    return {
        "device": f"cuda:{index}",
        "name": name.decode() if isinstance(name, bytes) else name,
        "total": memory.total,
        "free": memory.free,
        "driver": str(pynvml.nvmlSystemGetDriverVersion()),
        "capability": ".".join(map(str, pynvml.nvmlDeviceGetCudaComputeCapability(handle))),
    }


def _links() -> list[Json] | str:
    """How the first two cards reach each other: tensor split sends two sums a layer over this."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NO_LINK
    try:
        count = pynvml.nvmlDeviceGetCount()
        if count < 2:
            return NO_LINK
        link = {"devices": "cuda:0 cuda:1", "peer access": _peer_access(pynvml, 0, 1)}
    finally:
        pynvml.nvmlShutdown()
    microseconds = measure(["cuda:0", "cuda:1"])
    sum_us = "by NCCL alone" if microseconds is None else f"{microseconds} us through host memory"
    return [link | {"sum of 16 KiB": sum_us}]


def _peer_access(pynvml: Any, first: int, second: int) -> str:
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in (first, second)]
    status = pynvml.nvmlDeviceGetP2PStatus(*handles, pynvml.NVML_P2P_CAPS_INDEX_READ)
    return "yes" if status == pynvml.NVML_P2P_STATUS_OK else "no"


def _kernels() -> list[Json]:
    from qlocal.kernels import dispatch  # torch

    return [{"name": k.name, "chosen": k.chosen, "reason": k.reason} for k in dispatch.describe()]


def _settings() -> Json:
    settings = load_settings()
    values = {name: _setting(settings, name) for name in settings.sources}
    folders = {"config": str(config_folder()), "runtime": str(launch.runtime_folder(settings))}
    free = shutil.disk_usage(next(p for p in (settings.home, *settings.home.parents) if p.exists())).free
    return {"values": values, "folders": folders, "free_disk": free, "interpreter": sys.executable}


def _setting(settings: Settings, name: str) -> Json:
    value = getattr(settings, name)
    return {"value": str(value) if isinstance(value, Path) else value, "source": settings.sources[name]}


def _server() -> Json | str:
    address = launch.own_address()
    status = launch.fetch_status(address)
    return f"none at {address}" if status is None else {"address": str(address), **status.to_json(), "plan": None}
