"""A 4-bit weight that learns: every step down the slope of a loss moves its scales a little, by the sign alone.

The weight takes its step within the backward pass, as soon as its own slope is known: no more than one is held at a
time. Codes stay: moving them by slopes as well made layers worse (docs/quantizing.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qlocal.formats.packing import unpack_codes
from qlocal.weights import AffineWeight

STRIP_ELEMENTS = 1 << 18
"""Values that are worked on at once: 1 MB of float32, which stays in the cache."""


class LearnedWeight:
    """An affine weight (N, K) while it learns. rate: share of its first value by which the next step moves every scale.

    dtype: in which it is multiplied. min_tokens: fewer inputs than that say too little for a step.
    """

    def __init__(self, weight: AffineWeight, dtype: torch.dtype, device: torch.device, min_tokens: int = 0) -> None:
        self.rate = 0.0
        self.min_tokens = min_tokens
        self.order_K = None if weight.g_idx is None else torch.argsort(weight.g_idx, stable=True).to(device)
        self._weight, self._dtype = weight, dtype
        codes = unpack_codes(weight.codes).to(device)
        if self.order_K is not None:
            codes = codes[:, self.order_K]
        self._codes_NGg = codes.view(*weight.scales.shape, weight.group_size)
        self._zeros_NG1 = weight.zero_points.to(device).float().unsqueeze(-1)
        self._first_NG1 = weight.scales.to(device).float().unsqueeze(-1)
        self._factor_NG1 = torch.ones_like(self._first_NG1)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self._weight.shape

    def inputs(self, x_TK: Tensor) -> Tensor:
        """Return activations as they are multiplied: rounded, in the order of the columns of `values`."""
        rounded = x_TK.to(self._dtype)
        return rounded if self.order_K is None else rounded[:, self.order_K]

    def values(self) -> Tensor:
        """Return what it stands for now: (N, K) in its dtype, the columns of a group side by side."""
        values = torch.empty_like(self._codes_NGg, dtype=self._dtype)
        scales = self._scales()
        for rows in self._strips():
            values[rows] = self._codes_NGg[rows].float().sub_(self._zeros_NG1[rows]).mul_(scales[rows])
        return values.flatten(1)

    def step(self, slope_NK: Tensor, values_NK: Tensor) -> None:
        """Go a step down. slope_NK: of the loss by the values, which `values` has returned; both of any float dtype."""
        slopes, values = slope_NK.view(self._codes_NGg.shape), values_NK.view(self._codes_NGg.shape)
        for rows in self._strips():
            by_scale = (slopes[rows].float() * values[rows]).sum(-1, keepdim=True)
            self._factor_NG1[rows] -= by_scale.sign_().mul_(self.rate)

    def stored(self) -> AffineWeight:
        """Return it as a file holds it, in host memory."""
        old, scales = self._weight, self._scales().squeeze(-1).half().cpu()
        return AffineWeight(old.codes, scales, old.zero_points, old.group_size, old.g_idx)

    def _scales(self) -> Tensor:
        """Return (N, G, 1) f32 holding f16 values."""
        return (self._first_NG1 * self._factor_NG1).half().float()

    def _strips(self) -> Iterator[slice]:
        rows = max(1, STRIP_ELEMENTS // self.shape[1])
        for start in range(0, self.shape[0], rows):
            yield slice(start, start + rows)


def product(x_TK: Tensor, weight: LearnedWeight) -> Tensor:
    """Return x W^T, (T, N) f32. When slopes go back through it, the weight takes a step."""
    result: Tensor = _Product.apply(x_TK, weight)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    """To autograd a function of x alone: slopes by the weight never leave it."""

    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight: LearnedWeight) -> Tensor:
        inputs, values = weight.inputs(x_TK), weight.values()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(inputs)
            ctx.weight, ctx.values = weight, values
        return (inputs @ values.T).float()

    @staticmethod
    def backward(ctx: Any, slope_TN: Tensor) -> tuple[Tensor, None]:
        (inputs,), weight, values = ctx.saved_tensors, ctx.weight, ctx.values
        ctx.values = None  # frees them before the next weight's are needed
        slope_TN = slope_TN.to(inputs.dtype)
        slope_TK = (slope_TN @ values).float()
        if len(inputs) >= weight.min_tokens:
            weight.step(slope_TN.T @ inputs, values)
        if weight.order_K is None:
            return slope_TK, None
        return torch.empty_like(slope_TK).index_copy_(1, weight.order_K, slope_TK), None
