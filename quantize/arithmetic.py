"""What the last bits of a result depend on beside its inputs: processes that agree in all of it compute the same."""

from __future__ import annotations

from pathlib import Path

import torch

import qlocal
from qlocal.devices import cpu_has_bf16
from qlocal.kernels import native

_VENDOR_FIELDS = ("vendor_id", "CPU implementer")


def arithmetic(device: str) -> dict[str, str]:
    """Return versions and instruction sets of this process, by name. The number of threads is the caller's choice."""
    library = native.load()
    return {
        "qlocal": qlocal.__version__,
        "torch": torch.__version__,
        "processor": f"{_vendor()} {torch.backends.cpu.get_cpu_capability()}{' bf16' if cpu_has_bf16() else ''}",
        "native kernels": library.isa.name.lower() if isinstance(library, native.Library) else "none",
        "device": "cpu" if device == "cpu" else torch.cuda.get_device_name(device),
    }


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return `name is X, not Y` for every value of `found` that is not the one wanted."""
    return [f"{name} is {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]


def _vendor() -> str:
    """Who made the processor: math libraries choose their kernels by it. Empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not Linux: the instruction set has to do
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() in _VENDOR_FIELDS), "")
