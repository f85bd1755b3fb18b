"""What the loader does: which layer goes to which device, and the bytes that everything takes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qlocal.config import FROM_CONTEXT, PREFILL_CHUNK, STORED


@dataclass(frozen=True)
class DevicePlan:
    """One device's share. Bytes; `layers` are indices of decoder layers.

    weight_bytes: allocated; mapped_bytes: read from the mapped file for every token. reserve_bytes: what is left alone
    of the free_bytes that there were; both 0 for a device that is named again."""

    device: str
    layers: tuple[int, ...]
    weight_bytes: int
    mapped_bytes: int
    cache_bytes: int
    scratch_bytes: int
    reserve_bytes: int
    free_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of the model: all but the reserve."""
        return self.weight_bytes + self.mapped_bytes + self.cache_bytes + self.scratch_bytes


@dataclass(frozen=True)
class DraftPlan:
    """The draft model: whole, on one device, whose bytes in a `DevicePlan` include these. path: of its checkpoint."""

    path: str
    device: str
    num_layers: int
    weight_bytes: int
    mapped_bytes: int
    cache_bytes: int
    scratch_bytes: int
    yarn_factor: float | None = None


@dataclass(frozen=True)
class Plan:
    """What the loader does. `dtype`: bfloat16 or float32 inputs of matmuls; `key_type` and `value_type`: how the cache
    holds K and V, of KV_BITS. head: how an output head of 16 bits is held, one of `config.HEAD_CHOICES`.

    split: `layer`, or `tensor` where every device holds a part of all layers. host_experts: layers whose experts
    compute on the CPU, whatever holds the rest of them. embedding_bytes: of the mapped table, which nothing counts.
    prefill_chunk: most prompt tokens of a step. rank_weights: in what proportion a tensor split divides all layers.
    guesses: who guesses next tokens, FROM_CONTEXT, NO_DRAFT or the path of the draft model that `draft` places.
    yarn_factor: by how much positions are stretched for max_context, None where the checkpoint's own scaling stays."""

    devices: tuple[DevicePlan, ...]
    embedding_device: str
    head_device: str
    max_context: int
    slots: int
    num_blocks: int
    block_size: int
    dtype: str
    key_type: str
    value_type: str
    head: str = STORED
    split: str = "layer"
    host_experts: tuple[int, ...] = ()
    embedding_bytes: int = 0
    prefill_chunk: int = PREFILL_CHUNK
    rank_weights: tuple[int, ...] = ()
    guesses: str = FROM_CONTEXT
    draft: DraftPlan | None = None
    yarn_factor: float | None = None

    def for_draft(self) -> Plan:
        """Return the plan by which the draft model is loaded: its cache has the blocks of the model's own."""
        assert self.draft is not None, "the caller asks whether there is one"
        device, layers = self.draft.device, tuple(range(self.draft.num_layers))
        return replace(
            self,
            devices=(DevicePlan(device, layers, 0, 0, 0, 0, 0, 0),),
            head_device=device,
            head=STORED,
            split="layer",
            host_experts=(),
            rank_weights=(),
            draft=None,
            yarn_factor=self.draft.yarn_factor,
        )

    def device_of_layer(self, layer: int) -> str:
        """Return the device name that holds `layer`; of a tensor split, the first."""
        for part in self.devices:
            if layer in part.layers:
                return part.device
        raise AssertionError(f"the plan covers every layer, but not {layer}")

    def device_of_experts(self, layer: int) -> str:
        """Return the device name that computes the gated block of `layer`, or its experts."""
        return "cpu" if layer in self.host_experts else self.device_of_layer(layer)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` has described: one rank makes it, the others take it over."""
        devices = tuple(DevicePlan(**{**part, "layers": tuple(part["layers"])}) for part in values["devices"])
        lists = {name: tuple(values[name]) for name in ("host_experts", "rank_weights")}
        draft = None if values["draft"] is None else DraftPlan(**values["draft"])
        return cls(**{**values, **lists, "devices": devices, "draft": draft})
