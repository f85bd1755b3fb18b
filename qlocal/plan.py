"""The memory plan: which layer goes to which device, and how many bytes everything takes. No torch.

Computed from headers alone; the loader executes this very plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DevicePlan:
    """One device's share. Bytes; `layers` are indices of decoder layers."""

    device: str
    layers: tuple[int, ...]
    weight_bytes: int
    cache_bytes: int
    scratch_bytes: int


@dataclass(frozen=True)
class Plan:
    """What the loader does. `dtype`: bfloat16 or float32 inputs of matmuls; `cache_dtype` float16 or float32."""

    devices: tuple[DevicePlan, ...]
    embedding_device: str
    head_device: str
    max_context: int
    slots: int
    num_blocks: int
    block_size: int
    dtype: str
    cache_dtype: str

    def device_of_layer(self, layer: int) -> str:
        """Return the device name that holds `layer`."""
        for part in self.devices:
            if layer in part.layers:
                return part.device
        raise AssertionError(f"the plan covers every layer, but not {layer}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
