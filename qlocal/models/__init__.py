"""The architectures, found by the checkpoint's `model_type` or by GGUF's `general.architecture`."""

from __future__ import annotations

from qlocal.errors import UnsupportedError
from qlocal.models import llama, mixtral, qwen2
from qlocal.models.base import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    module.ARCHITECTURE.model_type: module.ARCHITECTURE for module in (qwen2, llama, mixtral)
}


def by_model_type(model_type: str, *, where: str) -> Architecture:
    """Return the architecture named `model_type`; `where` (file and field) goes into the error."""
    if model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"{where}: model_type {model_type[:60]!r} is not supported",
            hint=f"Supported: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return ARCHITECTURES[model_type]


def by_gguf_arch(gguf_arch: str, num_experts: int, *, where: str) -> Architecture:
    """Return the architecture of a GGUF file; GGUF calls Mixtral `llama` with experts."""
    for architecture in ARCHITECTURES.values():
        if architecture.gguf_arch == gguf_arch and architecture.is_moe == (num_experts > 0):
            return architecture
    raise UnsupportedError(
        f"{where}: general.architecture {gguf_arch[:60]!r} with {num_experts} experts is not supported",
        hint=f"Supported: {', '.join(sorted({a.gguf_arch for a in ARCHITECTURES.values()}))}.",
    )
