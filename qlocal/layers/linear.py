"""The one quantized linear: one or several neutral weights with one input. Formats meet kernels here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qlocal.kernels import dispatch, joining
from qlocal.kernels.native_step import Part
from qlocal.layers.precision import compute_dtype
from qlocal.weights import DenseWeight, Weight


@dataclass(frozen=True)
class Placement:
    """Where and how a linear computes. dtype: bfloat16 or float32; kernels: one of dispatch.KERNEL_CHOICES.

    keeps_words: its inputs keep 16 bits where those of prompts would be rounded to 8, with a scale for every 32, by a
    CPU without AMX or by int8 kernels: what q/k/v and the last layers need (`docs/architecture.md`)."""

    device: torch.device
    dtype: str = "bfloat16"
    kernels: str = "auto"
    keeps_words: bool = False


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
        self._inputs: Tensor | None = None

    @property
    def keeps_words(self) -> bool:
        """Whether inputs are never rounded to 8 bits."""
        return self._placement.keeps_words

    @property
    def num_calls(self) -> int:
        """Kernel calls that one product takes."""
        return len(self._groups)

    def gathered(self, x: Tensor) -> Tensor:
        """Return the columns (T, K') of inputs (T, K) that the weights have columns for, in their order."""
        return x.contiguous() if self._inputs is None else F.pad(x, (0, 1))[:, self._inputs]

    def bias(self) -> Tensor | None:
        """Return the biases of all parts in a row (N,) f32, or None where there are none."""
        parts = self.parts()
        if all(part.bias is None for part in parts):
            return None
        zeros = [torch.zeros(part.weight.shape[0], device=self._placement.device) for part in parts]
        return torch.cat([zero if part.bias is None else part.bias for part, zero in zip(parts, zeros, strict=True)])

    def parts(self) -> list[Part]:
        """Return the weights with their biases, as they are computed: neighbours may be joined."""
        return [Part(group.prepared, group.bias) for group in self._groups if group is not None]

    def fill(
        self, weights: Sequence[Weight], biases: Sequence[DenseWeight | None], inputs: Tensor | None = None
    ) -> None:
        """Set all parts at once; neighbours that can be are joined along N.

        inputs: (K',) int64, the input that each column of the weights is for, `in_features` for a zero; None for (K,)
        in order.
        """
        columns = self.in_features if inputs is None else len(inputs)
        for weight, size in zip(weights, self.out_features, strict=True):
            self._check(weight, size, columns)
        self._inputs = None if inputs is None else inputs.to(self._placement.device)
        self._groups = []
        for start, stop in _joinable_runs(weights):
            self._groups.append(self._prepare(weights[start:stop], biases[start:stop]))

    def set_part(self, index: int, weight: Weight, bias: DenseWeight | None = None) -> None:
        """Replace part `index`; its old weight and bias are dropped."""
        assert len(self._groups) == len(self.out_features), "joined parts cannot be replaced one by one"
        self._check(weight, self.out_features[index], self.in_features)
        self._groups[index] = None  # free the old weight before the new one is prepared
        self._groups[index] = self._prepare([weight], [bias])

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Multiply. x: (T, K) f32, any strides. Returns (T, N) f32 for every part."""
        x = self.gathered(x)
        outputs: list[Tensor] = []
        for group in self._groups:
            assert group is not None, "every part is filled before the first forward"
            y = dispatch.quant_matmul(x, group.prepared)  # (T, sum of sizes) f32
            if group.bias is not None:
                y += group.bias
            outputs += [y] if len(group.sizes) == 1 else y.split_with_sizes(group.sizes, dim=-1)
        return tuple(outputs)

    def _check(self, weight: Weight, rows: int, columns: int) -> None:
        expected = (rows, columns)
        assert tuple(weight.shape) == expected, f"a weight of {tuple(weight.shape)} where the table says {expected}"

    def _prepare(self, weights: Sequence[Weight], biases: Sequence[DenseWeight | None]) -> _Group:
        device, keeps_words = self._placement.device, self._placement.keeps_words
        prepared = dispatch.prepare_joined(
            weights, device, self._dtype, self._placement.kernels, keeps_words=keeps_words
        )
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
        if runs and joining.can_join(weights[runs[-1][0]], weight):
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs
