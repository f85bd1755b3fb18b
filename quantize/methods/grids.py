"""What columns are rounded to: the groups of AWQ and GPTQ, and the blocks of GGUF. A grid fits a group's scales to the
values that its columns have by then, and turns finished records into a neutral weight.

A record is what native code writes for a group of a row: a GGML block as the file has it, or for an affine group its
scale (f16), its zero point, a byte of nothing, and a byte a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from qlocal.ggml_types import GgmlType
from qlocal.kernels.feedback_blocks import AFFINE_HEADER, AffineGroup, affine_group, group_layout
from qlocal.weights import AffineWeight, BlockWeight
from quantize.methods import rtn
from quantize.methods.base import AffineSettings

SYMMETRIC_STEPS = tuple(8.0 + 0.1 * step for step in (0, *range(-9, 0), *range(1, 10)))
"""Codes that the largest magnitude of a symmetric group is laid on, the plain one first."""
RANGE_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
MAX_APART = 3
"""How many shares the two ends of an asymmetric group's range may differ by."""
REFITS = 2

MadeT_co = TypeVar("MadeT_co", bound=AffineWeight | BlockWeight, covariant=True)


class Grid(Protocol[MadeT_co]):
    """group_type: what native code calls the groups. columns: those of a group. min_zero: lowest zero point of a group,
    where it has one."""

    @property
    def group_type(self) -> AffineGroup | GgmlType: ...

    @property
    def columns(self) -> int: ...

    @property
    def min_zero(self) -> int: ...

    def weight(self, records_NGb: Tensor) -> MadeT_co:
        """Return the weight of records (N, G, bytes) uint8 whose groups stand in the file's order."""
        ...


@dataclass(frozen=True)
class BlockGrid:
    """Blocks of a GGML type."""

    ggml_type: GgmlType

    @property
    def group_type(self) -> GgmlType:
        return self.ggml_type

    @property
    def columns(self) -> int:
        return group_layout(self.ggml_type)[0]

    @property
    def min_zero(self) -> int:
        return 0

    def weight(self, records_NGb: Tensor) -> BlockWeight:
        rows, groups, _ = records_NGb.shape
        return BlockWeight(records_NGb.view(rows, -1), self.ggml_type, groups * self.columns)


@dataclass(frozen=True)
class AffineGrid:
    """4-bit groups with a scale and a zero point."""

    settings: AffineSettings

    @property
    def group_type(self) -> AffineGroup:
        return affine_group(self.settings.group_size, self.settings.symmetric)

    @property
    def columns(self) -> int:
        return self.settings.group_size

    @property
    def min_zero(self) -> int:
        return self.settings.min_zero

    def weight(self, records_NGb: Tensor) -> AffineWeight:
        codes = records_NGb[..., AFFINE_HEADER:].flatten(1)
        scales = records_NGb[..., :2].contiguous().view(torch.float16).squeeze(-1)
        return rtn.affine_weight(codes, scales, records_NGb[..., 2], self.columns)

    def fit(self, group_NC: Tensor, weights_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale (f32 holding f16 values) and zero point (N,) with the least weighted error of a group.

        Symmetric groups (zero point 8) have a code more on one side, so their scale may be negative: the largest
        magnitude is laid on it. For the others both ends of the range are drawn in. This is the reference of
        csrc/affine_fit.h.
        """
        if self.settings.symmetric:
            return _fit_symmetric(group_NC, weights_C)
        return _fit_asymmetric(group_NC, weights_C, self.min_zero)


def _fit_symmetric(group_NC: Tensor, weights_C: Tensor) -> tuple[Tensor, Tensor]:
    extreme_N = group_NC.gather(1, group_NC.abs().argmax(1, keepdim=True)).squeeze(1)
    safe = torch.where(extreme_N == 0, 1.0, extreme_N)
    scale, best = torch.zeros_like(extreme_N), torch.full_like(extreme_N, -1.0)
    for step in SYMMETRIC_STEPS:
        codes = (group_NC * (-step / safe).unsqueeze(1)).round_().clamp_(-8, 7)
        xq, qq = (codes * group_NC) @ weights_C, codes.square() @ weights_C
        gain = torch.where(qq > 0, xq.square() / qq, 0.0)
        better = gain > best
        scale = torch.where(better, xq / torch.where(qq > 0, qq, 1.0), scale)
        best = torch.where(better, gain, best)
    scale = scale.half().float()
    return torch.where(scale != 0, scale, rtn.EMPTY_SCALE), torch.full_like(scale, rtn.SYMMETRIC_ZERO)


def _fit_asymmetric(group_NC: Tensor, weights_C: Tensor, min_zero: int) -> tuple[Tensor, Tensor]:
    low_N, high_N = group_NC.amin(1).clamp(max=0.0), group_NC.amax(1).clamp(min=0.0)
    best = _Best(group_NC, weights_C)
    for at, down in enumerate(RANGE_SHARES):
        for other, up in enumerate(RANGE_SHARES):
            if abs(at - other) <= MAX_APART:
                scale, zero = rtn.grid(low_N * down, high_N * up, AffineSettings(len(weights_C), False, min_zero))
                best.offer(scale, zero)
    for _ in range(REFITS):
        best.offer(best.refitted(), best.zero_N)
    empty = high_N <= low_N
    return torch.where(empty, rtn.EMPTY_SCALE, best.scale_N), torch.where(empty, 8.0, best.zero_N)


class _Best:
    """The best grid of every row so far."""

    def __init__(self, group_NC: Tensor, weights_C: Tensor) -> None:
        self._group_NC, self._weights_C = group_NC, weights_C
        self.scale_N = torch.ones(len(group_NC), device=group_NC.device)
        self.zero_N = torch.zeros_like(self.scale_N)
        self._error_N = torch.full_like(self.scale_N, torch.inf)

    def offer(self, scale_N: Tensor, zero_N: Tensor) -> None:
        """Take a grid where it is better."""
        steps = self._steps(scale_N, zero_N)
        error = steps.mul_(scale_N.unsqueeze(1)).sub_(self._group_NC).square_() @ self._weights_C
        better = error < self._error_N
        self.scale_N = torch.where(better, scale_N, self.scale_N)
        self.zero_N = torch.where(better, zero_N, self.zero_N)
        self._error_N = torch.where(better, error, self._error_N)

    def refitted(self) -> Tensor:
        """Return the scale that fits the codes of the best grid best, as it will be stored."""
        steps = self._steps(self.scale_N, self.zero_N)
        xq, qq = (steps * self._group_NC) @ self._weights_C, steps.square() @ self._weights_C
        return torch.where(qq > 0, xq / torch.where(qq > 0, qq, 1.0), 0.0).half().float().clamp(min=rtn.SMALLEST_SCALE)

    def _steps(self, scale_N: Tensor, zero_N: Tensor) -> Tensor:
        """Return the codes less the zero point (N, C)."""
        scale, zero = scale_N.unsqueeze(1), zero_N.unsqueeze(1)
        return rtn.nearest_codes(self._group_NC, scale, zero).sub_(zero)
