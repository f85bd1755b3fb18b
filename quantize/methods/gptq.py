"""GPTQ: columns are rounded one after another, and the error of each is made up for by those that follow.

Written with the upper factor R of the damped Gram matrix (`factor.py`): after columns 0..b-1 carry errors E, the
best values of the next block are W + E R[:b, block] R[block, block]^-1. This is the published algorithm (arXiv
2210.17323) without its inverse: half the arithmetic, and the loss ||(W - Q) R||² falls out on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.weights import AffineWeight
from quantize.methods import rtn
from quantize.methods.base import AffineSettings, Quantized, Statistics
from quantize.methods.factor import factorize

BLOCK = 128
"""Columns solved before their errors are carried on; a multiple of every group size."""
SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76)
"""Shares of a group's range that are tried for its scale."""
PERMUTE_ROWS = 1024
NORM_ROWS = 512
"""Rows from which the size of the output is taken, to which the reported loss relates."""


@dataclass(frozen=True)
class GptqSettings:
    """desc_act: columns in the order of their energy, groups across them (g_idx). Else the order changes inside
    groups and of whole groups alone, which no file shows. damp: share of the mean diagonal added to it."""

    affine: AffineSettings
    desc_act: bool = False
    group_aware: bool = True
    damp: float = 0.05


class GptqSolver:
    """Everything that linears with one input share: the order of columns and the factor.

    Takes the Gram matrix out of `stats` and overwrites it: at K = 29568 there is no room for a second one.
    scale_K: (K,) f32, AWQ's scale, by which the columns of every weight are multiplied and the inputs divided.
    """

    def __init__(self, stats: Statistics, settings: GptqSettings, scale_K: Tensor | None = None) -> None:
        assert stats.gram_KK is not None, "GPTQ needs the Gram matrix of the inputs"
        self._settings = settings
        self._scale_K = scale_K
        hessian, stats.gram_KK = stats.gram_KK, None
        hessian.div_(max(stats.tokens, 1))
        if scale_K is not None:
            hessian.div_(scale_K).div_(scale_K.unsqueeze(1))
        energy_K = hessian.diagonal().clone()
        self.dead_K = energy_K <= 0
        hessian.diagonal()[self.dead_K] = float(energy_K.mean()) or 1.0
        energy_K[self.dead_K] = 0.0
        self._energy_K = energy_K
        self._perm_K = column_order(energy_K, settings)
        permute_in_place(hessian, self._perm_K)
        self._factor_KK, self.damp = factorize(hessian, settings.damp)

    def quantize(self, w_NK: Tensor) -> Quantized[AffineWeight]:
        """Solve one weight, or several stacked along N. w_NK: (N, K) f32, overwritten with the errors W - Q."""
        group_size = self._settings.affine.group_size
        w_NK[:, self.dead_K] = 0.0
        if self._scale_K is not None:
            w_NK *= self._scale_K
        work_NK = w_NK if self._is_natural() else permuted_columns(w_NK, self._perm_K)
        total = self._norm(work_NK)
        codes_NK = torch.empty(work_NK.shape, dtype=torch.uint8)
        scales_NG = torch.empty(len(work_NK), work_NK.shape[1] // group_size)
        zeros_NG = torch.empty_like(scales_NG)
        loss = 0.0
        for start in range(0, work_NK.shape[1], BLOCK):
            columns = slice(start, min(start + BLOCK, work_NK.shape[1]))
            groups = slice(columns.start // group_size, columns.stop // group_size)
            block = self._solve_block(work_NK, columns)
            codes_NK[:, columns] = block.codes_BN.T
            scales_NG[:, groups], zeros_NG[:, groups] = block.scales_GN.T, block.zeros_GN.T
            loss += block.loss
        return Quantized(self._in_file_order(codes_NK, scales_NG, zeros_NG), loss / total if total > 0 else 0.0)

    def _solve_block(self, work_NK: Tensor, columns: slice) -> _Block:
        """Round the columns of one block; leaves their errors W - Q in `work_NK`."""
        factor = self._factor_KK[columns, columns].triu()  # (B, B)
        inverse = torch.linalg.solve_triangular(factor.double(), torch.eye(len(factor)).double(), upper=True).float()
        target_NB = work_NK[:, columns].clone()
        carried_NB = work_NK[:, : columns.start] @ self._factor_KK[: columns.start, columns]
        block = _Block((target_NB + carried_NB @ inverse).T.contiguous(), inverse)
        energy = self._energy_K[self._perm_K[columns]]
        block.solve(self._settings.affine, energy)
        work_NK[:, columns] = target_NB - block.values_BN.T
        return block

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

    def _is_natural(self) -> bool:
        return bool((self._perm_K == torch.arange(len(self._perm_K))).all())

    def _in_file_order(self, codes_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor) -> AffineWeight:
        """Undo the order of solving. With desc_act g_idx remembers the groups; otherwise they are contiguous."""
        group_size = self._settings.affine.group_size
        inverse = torch.argsort(self._perm_K)
        codes = codes_NK if self._is_natural() else permuted_columns(codes_NK, inverse)
        if self._settings.desc_act:
            g_idx = (inverse // group_size).to(torch.int32)
            return rtn.affine_weight(codes, scales_NG, zeros_NG, group_size, g_idx)
        solved_at = torch.argsort(self._perm_K[::group_size] // group_size)  # position at which a group was solved
        return rtn.affine_weight(codes, scales_NG[:, solved_at], zeros_NG[:, solved_at], group_size)


class _Block:
    """One block of columns while it is solved: transposed, so that a column is contiguous. B columns, N rows."""

    def __init__(self, work_BN: Tensor, inverse_BB: Tensor) -> None:
        self._work_BN = work_BN
        self._inverse_BB = inverse_BB
        self.codes_BN = torch.empty(work_BN.shape, dtype=torch.uint8)
        self.values_BN = torch.empty_like(work_BN)
        self.scales_GN = torch.empty(0)
        self.zeros_GN = torch.empty(0)
        self.loss = 0.0

    def solve(self, settings: AffineSettings, energy_B: Tensor) -> None:
        """Round column by column, carrying each error to the columns after it."""
        scales, zeros = [], []
        loss = torch.zeros((), dtype=torch.float64)
        for column in range(len(self._work_BN)):
            if column % settings.group_size == 0:
                group = slice(column, column + settings.group_size)
                scale_N, zero_N = best_grid(self._work_BN[group].T, energy_B[group], settings)
                scales.append(scale_N)
                zeros.append(zero_N)
            error_N = self._round_column(column, scales[-1], zeros[-1]) / self._inverse_BB[column, column]
            loss += error_N.square().sum(dtype=torch.float64)
            rest = self._inverse_BB[column, column + 1 :]
            self._work_BN[column + 1 :].addr_(rest, error_N, alpha=-1.0)
        self.scales_GN, self.zeros_GN, self.loss = torch.stack(scales), torch.stack(zeros), float(loss)

    def _round_column(self, column: int, scale_N: Tensor, zero_N: Tensor) -> Tensor:
        """Store code and value of one column; return what rounding has changed."""
        wanted_N = self._work_BN[column]
        codes_N = (wanted_N / scale_N).round_().add_(zero_N).clamp_(0, rtn.MAX_CODE)
        self.codes_BN[column] = codes_N.to(torch.uint8)
        self.values_BN[column] = codes_N.sub_(zero_N).mul_(scale_N)
        return wanted_N - self.values_BN[column]


def best_grid(group_Ng: Tensor, energy_g: Tensor, settings: AffineSettings) -> tuple[Tensor, Tensor]:
    """Return scale and zero point (N,) of the shrunken range with the least error, columns weighted by energy."""
    low_N, high_N = group_Ng.amin(1, keepdim=True), group_Ng.amax(1, keepdim=True)
    weights = energy_g + 0.01 * energy_g.mean() if float(energy_g.sum()) > 0 else torch.ones_like(energy_g)
    best_low, best_high = low_N.clone(), high_N.clone()
    best_error = torch.full((len(group_Ng), 1), torch.inf)
    groups = group_Ng.unsqueeze(1)  # (N, 1, g)
    for shrink in SHRINKS:
        values = rtn.fake_quantize(groups, low_N * shrink, high_N * shrink, settings).squeeze(1)
        error = (values.sub_(group_Ng).square_() @ weights).unsqueeze(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_low = torch.where(better, low_N * shrink, best_low)
        best_high = torch.where(better, high_N * shrink, best_high)
    scales, zeros = rtn.grid(best_low, best_high, settings)
    return scales.squeeze(1), zeros.squeeze(1)


def column_order(energy_K: Tensor, settings: GptqSettings) -> Tensor:
    """Return the columns in the order of solving: most energy first, over all columns or inside and among groups."""
    if settings.desc_act:
        return torch.argsort(energy_K, descending=True, stable=True)
    size = settings.affine.group_size
    if not settings.group_aware:
        return torch.arange(len(energy_K))
    groups = energy_K.view(-1, size)
    inside = torch.argsort(groups, dim=1, descending=True, stable=True)  # (G, g)
    among = torch.argsort(groups.amax(1), descending=True, stable=True)  # (G,)
    return (inside[among] + (among * size).unsqueeze(1)).flatten()


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
