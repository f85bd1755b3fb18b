"""GPTQ: columns are rounded one after another, and the error of each is made up for by those that follow.

Written with the upper factor R of the damped Gram matrix (`factor.py`): after columns 0..b-1 carry errors E, the
best values of the next block are W + E R[:b, block] R[block, block]^-1. This is the published algorithm (arXiv
2210.17323) without its inverse: half the arithmetic, and the loss ||(W - Q) R||² falls out on the way. What columns
are rounded to is a grid's matter (`grids.py`): groups of AWQ and GPTQ, or blocks of GGUF.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.formats.packing import pack_codes, unpack_codes
from qlocal.kernels.feedback_blocks import MAX_COLUMNS
from qlocal.weights import AffineWeight
from quantize.methods import feedback
from quantize.methods.base import Quantized, Statistics, WeightT
from quantize.methods.factor import factorize
from quantize.methods.grids import AffineGrid, Grid

PERMUTE_ROWS = 1024
NORM_ROWS = 512
"""Rows from which the size of the output is taken, to which the reported loss relates."""


@dataclass(frozen=True)
class GptqSettings:
    """damp: share of the mean diagonal added to it. desc_act: columns in the order of their energy, groups across them
    (g_idx); else the order changes inside groups and of whole groups alone, which no file shows. group_sizes: columns
    of a group, for every kind that the weights are rounded to; each divides the next larger one."""

    group_sizes: tuple[int, ...]
    damp: float
    desc_act: bool = False


class GptqSolver:
    """Everything that linears with one input share: the order of columns and the factor.

    Takes the Gram matrix out of `stats` and overwrites it: at K = 29568 there is no room for a second one. Works where
    the matrix lies, and gives weights in host memory.
    """

    def __init__(self, stats: Statistics, settings: GptqSettings) -> None:
        assert stats.gram_KK is not None, "GPTQ needs the Gram matrix of the inputs"
        self._settings = settings
        hessian, stats.gram_KK = stats.gram_KK, None
        self._device = hessian.device
        self._scale_K: Tensor | None = None
        hessian.div_(max(stats.tokens, 1))
        energy_K = hessian.diagonal().clone()
        self.dead_K = energy_K <= 0
        alive = energy_K[~self.dead_K]
        hessian.diagonal()[self.dead_K] = float(alive.mean()) if len(alive) else 1.0
        energy_K[self.dead_K] = 0.0
        self._perm_K = column_order(energy_K, settings)
        self._energy_K = energy_K[self._perm_K]
        permute_in_place(hessian, self._perm_K)
        self._factor_KK, self.damp = factorize(hessian, settings.damp)

    @property
    def weights_K(self) -> Tensor:
        """What an error of a column counts for whoever chooses scales: (K,) f32 as the file has them, 0 for columns
        without inputs."""
        weights_K = torch.empty_like(self._energy_K)
        weights_K[self._perm_K] = feedback.column_weights(self._energy_K, self._factor_KK.diagonal())
        return weights_K.masked_fill_(self.dead_K, 0.0)

    def scale(self, scale_K: Tensor) -> None:
        """Multiply the columns of every weight by `scale_K` (K,) f32 before it is solved, and divide its inputs (AWQ).
        Once; the order of columns and the damping stay those of the unscaled inputs."""
        assert self._scale_K is None, "scaled already"
        self._scale_K = scale_K.to(self._device)
        in_order_K = self._scale_K[self._perm_K]
        self._factor_KK.div_(in_order_K.unsqueeze(1))
        self._energy_K /= in_order_K.square()

    def quantize(self, w_NK: Tensor, grid: Grid[WeightT]) -> Quantized[WeightT]:
        """Solve one weight, or several stacked along N. w_NK: (N, K) f32, which may be overwritten."""
        weight, lost, there = self.solve(w_NK, grid)
        return Quantized(weight, lost / there if there > 0 else 0.0)

    def solve(self, w_NK: Tensor, grid: Grid[WeightT]) -> tuple[WeightT, float, float]:
        """Return what `quantize` does with its loss in two parts, which add up over strips of rows: ||(W - Q) X||² and
        ||W X||²."""
        assert grid.columns in self._settings.group_sizes, "whole groups change places"
        w_NK = w_NK.to(self._device)
        w_NK[:, self.dead_K] = 0.0
        if self._scale_K is not None:
            w_NK *= self._scale_K
        work_NK = permuted_columns(w_NK, self._perm_K)
        total, loss = self._norm(work_NK), 0.0
        parts = []
        for start in range(0, work_NK.shape[1], MAX_COLUMNS):
            columns = slice(start, min(start + MAX_COLUMNS, work_NK.shape[1]))
            solved = feedback.solve(self._problem(work_NK, columns, grid.columns), grid)
            work_NK[:, columns] -= solved.values_NB
            parts.append(solved.records_NGb)
            loss += solved.loss
        weight = grid.weight(self._in_file_order(torch.cat(parts, dim=1), grid.columns))
        if self._settings.desc_act:
            weight = self._with_group_index(weight, grid)
        return weight, loss, total

    def _problem(self, work_NK: Tensor, columns: slice, group: int) -> feedback.Problem:
        """Return the columns with what the errors of all before them ask of them."""
        factor = self._factor_KK[columns, columns].triu()  # (B, B)
        targets = work_NK[:, columns].clone()
        if columns.start:
            carried = work_NK[:, : columns.start] @ self._factor_KK[: columns.start, columns]
            targets += torch.linalg.solve_triangular(factor, carried, upper=True, left=False)
        at = torch.arange(columns.stop - columns.start, device=self._device)
        places = at if self._settings.desc_act else at // group * group + self._perm_K[columns] % group
        return feedback.Problem(targets, factor, places, self._energy_K[columns])

    def _norm(self, work_NK: Tensor) -> float:
        """Return ||W R||² a block of columns at a time, from evenly taken rows where there are many."""
        step = -(-len(work_NK) // NORM_ROWS)
        share = len(work_NK) / len(work_NK[::step])
        work_NK = work_NK[::step].contiguous()
        total = 0.0
        for start in range(0, work_NK.shape[1], 1024):
            columns = slice(start, start + 1024)
            above = work_NK[:, :start] @ self._factor_KK[:start, columns]
            inside = work_NK[:, columns] @ self._factor_KK[columns, columns].triu()
            total += float((above + inside).square().sum(dtype=torch.float64))
        return total * share

    def _in_file_order(self, records_NGb: Tensor, group: int) -> Tensor:
        """Put the groups where they were before they were ordered; with desc_act they stay as they were solved."""
        if self._settings.desc_act:
            return records_NGb
        return records_NGb[:, torch.argsort(self._perm_K[::group] // group).to(records_NGb.device)]

    def _with_group_index(self, weight: WeightT, grid: Grid[WeightT]) -> WeightT:
        assert isinstance(weight, AffineWeight) and isinstance(grid, AffineGrid), "GPTQ's own format has g_idx"
        inverse = torch.argsort(self._perm_K).cpu()
        codes = permuted_columns(unpack_codes(weight.codes), inverse)
        g_idx = (inverse // grid.columns).to(torch.int32)
        return AffineWeight(pack_codes(codes), weight.scales, weight.zero_points, grid.columns, g_idx)


def column_order(energy_K: Tensor, settings: GptqSettings) -> Tensor:
    """Return the columns in the order of solving: most energy first, over all columns, or inside and among groups."""
    order = torch.arange(len(energy_K), device=energy_K.device)
    if settings.desc_act:
        return torch.argsort(energy_K, descending=True, stable=True)
    size = 1
    for group in sorted(settings.group_sizes):
        parts = order.view(-1, group // size, size)  # (groups, parts of each, columns of a part)
        by_part = energy_K[parts].amax(-1)
        inside = torch.argsort(by_part, dim=1, descending=True, stable=True)
        order, size = torch.take_along_dim(parts, inside.unsqueeze(-1), dim=1).flatten(), group
    among = torch.argsort(energy_K[order.view(-1, size)].amax(-1), descending=True, stable=True)
    return order.view(-1, size)[among].flatten()


def permute_in_place(matrix_KK: Tensor, perm_K: Tensor) -> None:
    """Reorder rows and columns of a square matrix with scratch for a strip alone."""
    for start in range(0, len(matrix_KK), PERMUTE_ROWS):
        rows = matrix_KK[start : start + PERMUTE_ROWS]
        rows.copy_(rows[:, perm_K])
    for start in range(0, len(matrix_KK), PERMUTE_ROWS):
        columns = matrix_KK[:, start : start + PERMUTE_ROWS]
        columns.copy_(columns[perm_K])


def permuted_columns(matrix_NK: Tensor, perm_K: Tensor) -> Tensor:
    """Reorder the columns of `matrix_NK` in place, a strip of rows at a time; returns it."""
    for start in range(0, len(matrix_NK), PERMUTE_ROWS):
        rows = matrix_NK[start : start + PERMUTE_ROWS]
        rows.copy_(rows[:, perm_K])
    return matrix_NK
