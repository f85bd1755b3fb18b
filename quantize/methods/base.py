"""The contract of every method: a float32 weight and what is known of its inputs go in, a neutral weight comes out.

Methods know no files, no layers and no models. N outputs, K inputs, T tokens, G = K / group_size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from qlocal.kernels.gram import add_gram, can_add_gram
from qlocal.weights import AffineWeight, BlockWeight

GRAM_BLOCK = 1024
"""Rows of the Gram matrix that one matrix product adds: bounds scratch memory, and spares most of the lower half."""

WeightT = TypeVar("WeightT", bound=AffineWeight | BlockWeight)


@dataclass(frozen=True)
class Quantized(Generic[WeightT]):
    """A quantized weight and its loss: ||(W - Q) X||² / ||W X||² over the calibration inputs.

    Without inputs (plain rounding) all columns weigh the same; with a diagonal alone, so does `loss`.
    """

    weight: WeightT
    loss: float


@dataclass(frozen=True)
class AffineSettings:
    """How codes are laid out. symmetric: the zero point is always 8. min_zero: lowest zero point allowed (GPTQ: 1)."""

    group_size: int
    symmetric: bool
    min_zero: int = 0


class Statistics:
    """Running sums over the inputs of one linear, or of several that share their input.

    Inputs are rounded to bf16 first, as the engine does before it multiplies.
    tokens: number of inputs seen. gram_KK: (K, K) f32 sum of w x x^T, w a token's weight, or None when it was not
    asked for. Means are those of the inputs alone; zeros when they were not asked for.
    device: where the matrix lies and is summed; all else is in host memory.
    """

    def __init__(
        self,
        columns: int,
        *,
        gram: bool = False,
        means: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.columns = columns
        self.tokens = 0
        self.gram_KK: Tensor | None = torch.zeros(columns, columns, device=device) if gram else None
        self._square_sum_K = torch.zeros(columns, dtype=torch.float64)
        self._means = means

    def add(self, x_TK: Tensor, weights_T: Tensor | None = None) -> None:
        """Count the inputs x (T, K), any float dtype. weights_T: (T,) f32 how much an error at each token matters, or
        None for 1."""
        rounded = x_TK.to(torch.bfloat16)
        self.tokens += len(rounded)
        if self._means:  # one call's sums are exact enough in float32; across calls they are kept in float64
            self._square_sum_K += rounded.float().square().sum(0).double().cpu()
        if weights_T is not None:
            rounded = (rounded * weights_T.sqrt().unsqueeze(1)).to(torch.bfloat16)
        if self.gram_KK is not None:
            self._add_gram(rounded)

    @property
    def mean_square_K(self) -> Tensor:
        """(K,) f32 mean of x²; zeros when nothing was seen."""
        return (self._square_sum_K / max(self.tokens, 1)).float()

    def copy(self, device: torch.device | str) -> Statistics:
        """Return the same sums with a Gram matrix of its own on a device, for a solver that uses it up."""
        other = copy.copy(self)
        other.gram_KK = None if self.gram_KK is None else self.gram_KK.to(device, copy=True)
        return other

    def finish(self) -> None:
        """Fill the lower triangle of the Gram matrix; only the upper one is summed."""
        if self.gram_KK is not None:
            mirror_upper(self.gram_KK)

    def _add_gram(self, rounded: Tensor) -> None:
        assert self.gram_KK is not None, "the caller has looked"
        if rounded.device.type == self.gram_KK.device.type == "cpu" and can_add_gram():
            add_gram(rounded.contiguous(), self.gram_KK)
            return
        x = rounded.float()
        with exact_bf16_products():
            for start in range(0, self.columns, GRAM_BLOCK):
                rows = x[:, start : start + GRAM_BLOCK]
                target = self.gram_KK[start : start + GRAM_BLOCK, start:]
                target.add_((rows.T @ x[:, start:]).to(target.device))


def mirror_upper(matrix_KK: Tensor) -> None:
    """Copy the upper triangle over the lower one, in place, a block at a time."""
    size = len(matrix_KK)
    for start in range(0, size, GRAM_BLOCK):
        stop = min(start + GRAM_BLOCK, size)
        diagonal = matrix_KK[start:stop, start:stop]
        diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        matrix_KK[stop:, start:stop] = matrix_KK[start:stop, stop:].T


@contextmanager
def exact_bf16_products() -> Iterator[None]:
    """Let float32 products run in bf16 units: exact where both operands hold bf16 values, sums stay in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
