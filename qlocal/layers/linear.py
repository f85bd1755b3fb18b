"""The one quantized linear: one or several neutral weights with one input. Formats meet kernels here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlocal.kernels import dispatch
from qlocal.kernels.native_step import Part
from qlocal.layers.precision import compute_dtype
from qlocal.weights import AffineWeight, BlockWeight, DenseWeight, Weight


@dataclass(frozen=True)
class Placement:
    """Where and how a linear computes. dtype: bfloat16 or float32; kernels: auto or reference."""

    device: torch.device
    dtype: str = "bfloat16"
    kernels: str = "auto"


@dataclass(frozen=True)
class _Group:
    """Neighbouring parts that one kernel call computes. sizes: rows of each part; bias: (sum of sizes,) f32."""

    prepared: dispatch.PreparedWeight
    sizes: list[int]
    bias: Tensor | None


class QuantLinear:
    """y = x W^T + b for parts with one input: q/k/v, gate/up, or a single weight.

    Built without memory from its shape, then filled: by `fill` at load, which joins parts of one kind into one
    kernel call, or part by part with `set_part`, which the quantizer uses to swap single weights.
    """

    def __init__(self, in_features: int, out_features: Sequence[int], placement: Placement) -> None:
        self.in_features = in_features
        self.out_features = tuple(out_features)
        self._placement = placement
        self._dtype = compute_dtype(placement.dtype)
        self._groups: list[_Group | None] = [None] * len(self.out_features)

    @property
    def num_calls(self) -> int:
        """Kernel calls that one product takes."""
        return len(self._groups)

    def parts(self) -> list[Part]:
        """Return the weights with their biases, as they are computed: neighbours may be joined."""
        return [Part(group.prepared, group.bias) for group in self._groups if group is not None]

    def fill(self, weights: Sequence[Weight], biases: Sequence[DenseWeight | None]) -> None:
        """Set all parts at once; neighbours that can be are joined along N."""
        for weight, size in zip(weights, self.out_features, strict=True):
            self._check(weight, size)
        self._groups = []
        for start, stop in _joinable_runs(weights):
            self._groups.append(self._prepare(weights[start:stop], biases[start:stop]))

    def set_part(self, index: int, weight: Weight, bias: DenseWeight | None = None) -> None:
        """Replace part `index`; its old weight and bias are dropped."""
        assert len(self._groups) == len(self.out_features), "joined parts cannot be replaced one by one"
        self._check(weight, self.out_features[index])
        self._groups[index] = None  # free the old weight before the new one is prepared
        self._groups[index] = self._prepare([weight], [bias])

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Multiply. x: (T, K) f32, any strides. Returns (T, N) f32 for every part."""
        x = x.contiguous()
        outputs: list[Tensor] = []
        for group in self._groups:
            assert group is not None, "every part is filled before the first forward"
            y = dispatch.quant_matmul(x, group.prepared)  # (T, sum of sizes) f32
            if group.bias is not None:
                y += group.bias
            outputs += y.split_with_sizes(group.sizes, dim=-1)
        return tuple(outputs)

    def _check(self, weight: Weight, rows: int) -> None:
        expected = (rows, self.in_features)
        assert tuple(weight.shape) == expected, f"a weight of {tuple(weight.shape)} where the table says {expected}"

    def _prepare(self, weights: Sequence[Weight], biases: Sequence[DenseWeight | None]) -> _Group:
        device = self._placement.device
        joined = weights[0] if len(weights) == 1 else _join(weights)
        prepared = dispatch.prepare(joined, device, self._dtype, kernels=self._placement.kernels)
        sizes = [w.shape[0] for w in weights]
        return _Group(prepared, sizes, _joined_bias(biases, sizes, device))


def vector(weight: Weight, device: torch.device) -> Tensor:
    """Return a norm or bias (N,) as f32 on `device`, its row map applied."""
    assert isinstance(weight, DenseWeight), "norms and biases are never quantized"
    data = weight.data if weight.row_map is None else weight.data[weight.row_map]
    return data.to(device=device, dtype=torch.float32, copy=True)


def _joined_bias(biases: Sequence[DenseWeight | None], sizes: Sequence[int], device: torch.device) -> Tensor | None:
    if all(bias is None for bias in biases):
        return None
    parts = [
        torch.zeros(size, device=device) if bias is None else vector(bias, device)
        for bias, size in zip(biases, sizes, strict=True)
    ]
    return torch.cat(parts)


def _joinable_runs(weights: Sequence[Weight]) -> list[tuple[int, int]]:
    """Return (start, stop) of the longest runs of neighbours that one kernel call can compute."""
    runs: list[tuple[int, int]] = []
    for index, weight in enumerate(weights):
        if runs and _can_join(weights[runs[-1][0]], weight):
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def _can_join(first: Weight, other: Weight) -> bool:
    if isinstance(first, DenseWeight) and isinstance(other, DenseWeight):
        return first.data.dtype == other.data.dtype
    if isinstance(first, BlockWeight) and isinstance(other, BlockWeight):
        return first.ggml_type == other.ggml_type
    if isinstance(first, AffineWeight) and isinstance(other, AffineWeight):
        same_kind = first.group_size == other.group_size and first.scales.dtype == other.scales.dtype
        return same_kind and _same_order(first.g_idx, other.g_idx)
    return False


def _same_order(first: Tensor | None, other: Tensor | None) -> bool:
    if first is None or other is None:
        return first is other
    return torch.equal(first, other)


def _join(weights: Sequence[Weight]) -> Weight:
    first = weights[0]
    if isinstance(first, DenseWeight):
        return DenseWeight(_cat(weights, "data"), _joined_row_map(weights))
    if isinstance(first, BlockWeight):
        return replace(first, blocks=_cat(weights, "blocks"), row_map=_joined_row_map(weights))
    codes, scales, zero_points = (_cat(weights, name) for name in ("codes", "scales", "zero_points"))
    return replace(first, codes=codes, scales=scales, zero_points=zero_points)


def _cat(weights: Sequence[Weight], name: str) -> Tensor:
    return torch.cat([getattr(weight, name) for weight in weights])


def _joined_row_map(weights: Sequence[Weight]) -> Tensor | None:
    maps = [getattr(weight, "row_map", None) for weight in weights]
    if all(row_map is None for row_map in maps):
        return None
    parts, offset = [], 0
    for weight, row_map in zip(weights, maps, strict=True):
        rows = weight.shape[0]
        parts.append((torch.arange(rows) if row_map is None else row_map) + offset)
        offset += rows
    return torch.cat(parts)
