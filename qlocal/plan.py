"""The memory plan: which layer goes to which device, and how many bytes everything takes. No torch.

Computed from headers alone; the loader executes this very plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from qlocal.config import HEAD_CHOICES, STORED
from qlocal.devices import free_bytes
from qlocal.errors import PlanError, UsageError
from qlocal.formats.base import Checkpoint, StoredTensor
from qlocal.ggml_types import LAYOUTS, GgmlType, row_bytes
from qlocal.models.base import ModelConfig, Role

BLOCK_SIZE = 256
PREFILL_CHUNK = 512
"""Most prompt tokens of one step; bounds the scratch memory."""
MIN_CONTEXT = 256
MEMORY_SHARE = 0.92
"""Of the free memory; the rest is for Python, libraries and what other programs do meanwhile."""
CACHE_SHARE = 0.5
"""Of the memory left beside weights and one full context, for more sequences and remembered ones."""
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
KV_BITS = {"f32": 32.0, "f16": 16.0, "q8": 8.5, "q4": 4.5}
"""Bits of a key or value in the cache, by type."""
DENSE_STORAGE = frozenset({"bf16", "f16", "f32"})


@dataclass(frozen=True)
class DevicePlan:
    """One device's share. Bytes; `layers` are indices of decoder layers."""

    device: str
    layers: tuple[int, ...]
    weight_bytes: int
    cache_bytes: int
    scratch_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.scratch_bytes


@dataclass(frozen=True)
class Plan:
    """What the loader does. `dtype`: bfloat16 or float32 inputs of matmuls; `key_type` and `value_type`: how the cache
    holds K and V, of KV_BITS. head: how an output head of 16 bits is held, one of `config.HEAD_CHOICES`."""

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

    def device_of_layer(self, layer: int) -> str:
        """Return the device name that holds `layer`."""
        for part in self.devices:
            if layer in part.layers:
                return part.device
        raise AssertionError(f"the plan covers every layer, but not {layer}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    checkpoint: Checkpoint,
    devices: Sequence[str],
    max_context: int | None = None,
    slots: int = 8,
    dtype: str = "bfloat16",
    max_memory: int | None = None,
    block_size: int = BLOCK_SIZE,
    head: str = STORED,
) -> Plan:
    """Place a checkpoint on `devices`, or raise PlanError with the numbers.

    max_context: tokens of one sequence; None takes what fits, up to the model's own limit.
    max_memory: bytes to use at most on every device; None takes what is free. Devices may repeat: `cpu,cpu`
    splits the layers over two shares of the same memory. head: how an output head of 16 bits is held; one that is
    quantized already stays as it is.
    """
    _check_head(checkpoint, head)
    limits = {device: free_bytes(device) for device in devices}
    if max_memory is not None:
        limits = {device: min(limit, max_memory) for device, limit in limits.items()}
    budgets = {device: int(limit * MEMORY_SHARE) for device, limit in limits.items()}
    draft = _Draft(checkpoint, tuple(devices), slots, dtype, block_size, budgets, head)
    limit = context_limit(checkpoint.config)
    if max_context is not None and max_context > limit:
        raise PlanError(
            f"a context of {max_context} tokens is asked for, the model was made for {limit}",
            hint=f"Ask for at most {limit} tokens.",
        )
    fitting = draft.largest_context(limit)
    wanted = max_context if max_context is not None else fitting
    if wanted > fitting or fitting < min(MIN_CONTEXT, limit):
        raise _does_not_fit(draft, max(wanted, min(MIN_CONTEXT, limit)), fitting)
    return draft.plan(wanted)


def _check_head(checkpoint: Checkpoint, head: str) -> None:
    """Raise UsageError for what is no way to hold a head, PlanError for one whose rows are no whole blocks."""
    if head not in HEAD_CHOICES:
        raise UsageError(f"there is no head '{head[:40]}'", hint=f"One of {', '.join(HEAD_CHOICES)}.")
    stored = head_of(checkpoint)
    held = _held_type(stored, head)
    columns, block = stored.shape[1], 1 if held is None else LAYOUTS[held].block_size
    if columns % block:
        raise PlanError(
            f"the head of {checkpoint.path.name} has {columns} columns, {head} needs a multiple of {block}",
            hint="Hold it as q8_0, or as it is stored.",
        )


def _held_type(stored: StoredTensor, head: str) -> GgmlType | None:
    """Return the type that a head gets at load, or None where it is held as it is stored."""
    return None if head == STORED or stored.storage not in DENSE_STORAGE else GgmlType[head.upper()]


def head_of(checkpoint: Checkpoint) -> StoredTensor:
    """Return what the output head is read from: the embedding where they are tied."""
    roles = {stored.spec.role: stored for stored in checkpoint.tensors.values() if stored.spec.layer is None}
    return roles.get(Role.HEAD, roles[Role.EMBEDDING])


def context_limit(config: ModelConfig) -> int:
    """Return the longest context the model was made for; YaRN reaches beyond `max_position_embeddings`."""
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "yarn":
        return max(config.max_position_embeddings, int(scaling.original_max_position_embeddings * scaling.factor))
    return config.max_position_embeddings


def _does_not_fit(draft: _Draft, context: int, fitting: int) -> PlanError:
    device, parts = next((d, p) for d, p in draft.by_device(context).items() if sum(p) > draft.budgets[d])
    weights, cache, scratch = (shown_bytes(n) for n in parts)
    smaller = fitting >= MIN_CONTEXT
    return PlanError(
        f"{draft.checkpoint.path.name} with {context} tokens of context needs {shown_bytes(sum(parts))} on {device} "
        f"({weights} weights, {cache} cache, {scratch} scratch), {shown_bytes(draft.budgets[device])} can be used",
        hint=f"The largest context that fits is {fitting} tokens."
        if smaller
        else "Use a smaller or more quantized checkpoint, more devices, or free some memory.",
    )


def shown_bytes(num_bytes: int) -> str:
    """Return a size for people, in GiB or MiB."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


@dataclass(frozen=True)
class _Draft:
    """The arithmetic of one placement, as a function of the context length."""

    checkpoint: Checkpoint
    devices: tuple[str, ...]
    slots: int
    dtype: str
    block_size: int
    budgets: dict[str, int]
    head: str

    def plan(self, context: int) -> Plan:
        num_blocks = self._num_blocks(context)
        return Plan(
            devices=self._parts(context, num_blocks),
            embedding_device="cpu",
            head_device=self.devices[-1],
            max_context=context,
            slots=self.slots,
            num_blocks=num_blocks,
            block_size=self.block_size,
            dtype=self.dtype,
            key_type=self.cache_type,
            value_type=self.cache_type,
            head=self.head,
        )

    @property
    def cache_type(self) -> str:
        return "f32" if self.dtype == "float32" else "f16"

    def largest_context(self, limit: int) -> int:
        """Return the largest context up to `limit` whose weights, cache and scratch fit; 0 when none does."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle - 1)
        return low

    def by_device(self, context: int) -> dict[str, tuple[int, int, int]]:
        """Return (weights, cache, scratch) bytes of every device with room for one sequence."""
        totals: dict[str, tuple[int, int, int]] = {}
        for part in self._parts(context, self._blocks_of(context)):
            weights, cache, scratch = totals.get(part.device, (0, 0, 0))
            # Shares of one device compute one after the other: they use the same scratch.
            totals[part.device] = (
                weights + part.weight_bytes,
                cache + part.cache_bytes,
                max(scratch, part.scratch_bytes),
            )
        return totals

    def _fits(self, context: int) -> bool:
        return all(sum(parts) <= self.budgets[device] for device, parts in self.by_device(context).items())

    def _blocks_of(self, context: int) -> int:
        return -(-context // self.block_size)

    def _num_blocks(self, context: int) -> int:
        """One full context for certain; up to one a slot where there is memory left."""
        needed, wanted = self._blocks_of(context), self.slots * self._blocks_of(context)
        for device, parts in self.by_device(context).items():
            block_bytes = sum(self._block_bytes(layers) for name, layers in self._shares if name == device)
            if block_bytes:
                spare = int((self.budgets[device] - sum(parts)) * CACHE_SHARE)
                wanted = min(wanted, needed + spare // block_bytes)
        return max(needed, wanted)

    def _parts(self, context: int, num_blocks: int) -> tuple[DevicePlan, ...]:
        scratch = self._scratch_bytes(context)
        return tuple(
            DevicePlan(device, layers, weights, num_blocks * self._block_bytes(layers), scratch)
            for (device, layers), weights in zip(self._shares, self._weights_of_shares, strict=True)
        )

    @cached_property
    def _weights_of_shares(self) -> list[int]:
        of_layer: dict[tuple[int | None, str], int] = {}
        for stored in self.checkpoint.tensors.values():
            for device in set(self.devices):
                key = (stored.spec.layer, device)
                of_layer[key] = of_layer.get(key, 0) + self._prepared_bytes(stored)
        weights = [sum(of_layer[layer, device] for layer in layers) for device, layers in self._shares]
        weights[-1] += self._head_bytes(self.devices[-1])
        if "cpu" in self.devices:
            weights[self.devices.index("cpu")] += self._stored(Role.EMBEDDING).num_bytes
        return weights

    @cached_property
    def _shares(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return contiguous layers for every entry of `devices`, in proportion to the memory it can use."""
        num_layers = self.checkpoint.config.num_hidden_layers
        capacity = [self.budgets[device] / self.devices.count(device) for device in self.devices]
        shares, start, reached = [], 0, 0.0
        for device, room in zip(self.devices, capacity, strict=True):
            reached += room
            stop = round(num_layers * reached / sum(capacity))
            shares.append((device, tuple(range(start, stop))))
            start = stop
        return shares

    def _head_bytes(self, device: str) -> int:
        stored = head_of(self.checkpoint)
        held = _held_type(stored, self.head)
        if held is None:
            return self._prepared_bytes(stored)
        rows, columns = stored.shape
        return rows * row_bytes(held, columns)

    def _stored(self, role: Role) -> StoredTensor:
        return next(stored for stored in self.checkpoint.tensors.values() if stored.spec.role is role)

    def _prepared_bytes(self, stored: StoredTensor) -> int:
        """Bytes of a tensor once it is ready to compute: dense matrices in the matmul dtype, vectors in float32."""
        if stored.storage not in DENSE_STORAGE:
            return stored.num_bytes
        count = 1
        for size in stored.shape:
            count *= size
        is_vector = len(stored.shape) == 1
        return count * ITEM_BYTES["float32" if is_vector else self.dtype]

    def _block_bytes(self, layers: tuple[int, ...]) -> int:
        return 2 * len(layers) * self.block_size * self.checkpoint.config.kv_size * int(KV_BITS[self.cache_type]) // 8

    def _scratch_bytes(self, context: int) -> int:
        """Upper bound of what a step holds at once: activations, K and V of one sequence in float32, logits."""
        config = self.checkpoint.config
        tokens = min(PREFILL_CHUNK, context) + self.slots
        widths = 4 * config.hidden_size + 2 * (config.q_size + 2 * config.kv_size) + 4 * config.intermediate_size
        attention = 2 * context * config.kv_size + 2 * min(PREFILL_CHUNK, context) * context
        logits = 6 * (self.slots + 1) * config.vocab_size
        return 4 * (tokens * widths + attention + logits)
