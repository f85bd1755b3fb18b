"""Which GGML type each tensor of a GGUF file gets when the file may have so many bytes. No torch.

The distances that single tensors cause are taken to add up; arXiv 2411.17525 finds them to while they are small. The
best types for a size are then a knapsack with one choice a tensor, which is solved but for the last bytes by going down
every tensor's lower convex hull, always where a byte gains most.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qlocal.errors import PlanError
from qlocal.formats.gguf_writer import GgufEntry
from qlocal.formats.type_mix import MIXES, is_linear
from qlocal.ggml_types import LAYOUTS, GgmlType
from qlocal.models.base import Architecture, ModelConfig, TensorSpec

CHOICES = tuple(dict.fromkeys(mix.default for mix in MIXES.values() if LAYOUTS[mix.default].block_size > 1))
"""Types that are written, in no order."""
MAX_WINDOWS, MAX_LENGTH = 4, 128
"""Windows of calibration text, and tokens of each, that tensors are measured on."""


@dataclass(frozen=True)
class Sensitivity:
    """What one tensor's types cost. shape: as the file has it. kl: what it adds to the mean KL, in nats a token, when
    it alone is stored as `measured`. errors: relative error of its outputs by type."""

    name: str
    shape: tuple[int, ...]
    measured: GgmlType
    kl: float
    errors: dict[GgmlType, float]

    def kl_as(self, ggml_type: GgmlType) -> float:
        """Return what the tensor adds to the mean KL as `ggml_type`: in proportion to its output error."""
        return self.kl * self.errors[ggml_type] / self.errors[self.measured] if self.errors[self.measured] else 0.0

    def num_bytes(self, ggml_type: GgmlType) -> int:
        return GgufEntry(self.name, self.shape, ggml_type).num_bytes


@dataclass(frozen=True)
class Choice:
    """types: by GGUF name, of the tensors that were measured. kl: the mean KL that they are expected to add."""

    types: dict[str, GgmlType]
    kl: float


def is_chosen(spec: TensorSpec) -> bool:
    """Whether a tensor's type is chosen: matrices but the router, where a type's blocks divide their rows."""
    return is_linear(spec) and bool(candidate_types(spec.shape[-1]))


def candidate_types(columns: int) -> list[GgmlType]:
    """Return the types whose blocks divide a row, smallest first; the larger block of two with the same size."""
    fitting = [t for t in CHOICES if columns % LAYOUTS[t].block_size == 0]
    return sorted(fitting, key=lambda t: (LAYOUTS[t].bits_per_weight, -LAYOUTS[t].block_size))


def smallest_types(architecture: Architecture, config: ModelConfig) -> dict[str, GgmlType]:
    """Return the types of the smallest file, by GGUF name."""
    chosen = [spec for spec in architecture.tensors(config) if is_chosen(spec)]
    return {spec.gguf_name: candidate_types(spec.shape[-1])[0] for spec in chosen}


def check_room(smallest_bytes: int, target_size: int) -> None:
    """Raise PlanError when the smallest file there can be is larger than asked for."""
    if smallest_bytes > target_size:
        raise PlanError(
            f"the file has {smallest_bytes:,} bytes with every tensor in its smallest type, "
            f"--target-size is {target_size:,}",
            hint="Allow a larger file, or take a smaller model.",
        )


def choose(sensitivities: Sequence[Sensitivity], max_bytes: int) -> Choice:
    """Return the types with the least expected KL whose tensors take at most `max_bytes`, which is enough for the
    smallest types."""
    steps = {s.name: _hull(s) for s in sensitivities}
    types = {name: hull[0] for name, hull in steps.items()}
    by_name = {s.name: s for s in sensitivities}
    left = max_bytes - sum(by_name[name].num_bytes(t) for name, t in types.items())
    assert left >= 0, "the smallest file fits: check_room"
    heap = [step for name, hull in steps.items() for step in _first_step(by_name[name], hull, 0)]
    heapq.heapify(heap)
    while heap:
        step = heapq.heappop(heap)
        if step.num_bytes > left:
            continue  # others with smaller steps may still fit
        left -= step.num_bytes
        types[step.name] = steps[step.name][step.position]
        for following in _first_step(by_name[step.name], steps[step.name], step.position):
            heapq.heappush(heap, following)
    return Choice(types, sum(by_name[name].kl_as(t) for name, t in types.items()))


@dataclass(frozen=True, order=True)
class _Step:
    """To `position` of a tensor's hull. slope: KL a byte, below 0; it comes first, since steps are sorted by it."""

    slope: float
    name: str
    position: int
    num_bytes: int


def _first_step(sensitivity: Sensitivity, hull: list[GgmlType], position: int) -> Iterator[_Step]:
    """Yield the step from `position` of the hull to the next, if there is one."""
    if position + 1 < len(hull):
        size, gain = _between(sensitivity, hull[position], hull[position + 1])
        yield _Step(-gain / size, sensitivity.name, position + 1, size)


def _hull(sensitivity: Sensitivity) -> list[GgmlType]:
    """Return the types on the lower convex hull of KL over bytes, smallest first."""
    best: dict[int, GgmlType] = {}
    for ggml_type in sensitivity.errors:
        size = sensitivity.num_bytes(ggml_type)
        if size not in best or sensitivity.kl_as(ggml_type) < sensitivity.kl_as(best[size]):
            best[size] = ggml_type
    hull: list[GgmlType] = []
    for _, ggml_type in sorted(best.items()):
        if hull and sensitivity.kl_as(ggml_type) >= sensitivity.kl_as(hull[-1]):
            continue
        while len(hull) > 1 and _slope(sensitivity, hull[-2], hull[-1]) <= _slope(sensitivity, hull[-2], ggml_type):
            hull.pop()
        hull.append(ggml_type)
    return hull


def _slope(sensitivity: Sensitivity, first: GgmlType, second: GgmlType) -> float:
    size, gain = _between(sensitivity, first, second)
    return gain / size


def _between(sensitivity: Sensitivity, first: GgmlType, second: GgmlType) -> tuple[int, float]:
    """Return the bytes that the second type takes more, and the KL that it takes away."""
    size = sensitivity.num_bytes(second) - sensitivity.num_bytes(first)
    return size, sensitivity.kl_as(first) - sensitivity.kl_as(second)
