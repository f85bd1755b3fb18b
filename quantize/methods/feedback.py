"""Some columns rounded one after another, the error of each carried to those that follow; then single codes are moved
to where the loss of these columns is least, given that all later ones can make up for it.

Native code does it for every grid; torch for affine ones alone, on any device, as the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlocal.kernels import native
from qlocal.kernels.feedback_blocks import feedback_blocks
from quantize.methods import rtn
from quantize.methods.grids import AffineGrid, Grid

ROUNDS = 2
"""Passes that move single codes: a third one changes little."""

AnyGrid = Grid[Any]


@dataclass(frozen=True)
class Problem:
    """B columns in the order of solving, whole groups one after another.

    targets_NB: (N, B) f32. factor_BB: (B, B) f32, the upper factor R of these columns: the loss is ||(T - Q) R||².
    places_B: (B,) where each stands as the file has it: group * columns + place in the group. energy_B: (B,) f32 mean
    x² of the inputs.
    """

    targets_NB: Tensor
    factor_BB: Tensor
    places_B: Tensor
    energy_B: Tensor

    def on(self, device: torch.device | str) -> Problem:
        """Return it on a device."""
        return Problem(*(part.to(device) for part in (self.targets_NB, self.factor_BB, self.places_B, self.energy_B)))

    @property
    def spread_BB(self) -> Tensor:
        """R^-1, f32: how the error of a column reaches those after it."""
        identity = torch.eye(len(self.factor_BB), dtype=torch.float64, device=self.factor_BB.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.factor_BB.double(), identity, upper=True)
        return inverse.float()

    @property
    def gram_BB(self) -> Tensor:
        """R R^T, f32."""
        factor = self.factor_BB.double()
        return (factor @ factor.T).float()

    @property
    def weights_B(self) -> Tensor:
        """What a fit weighs columns by, in the order of solving."""
        return column_weights(self.energy_B, self.factor_BB.diagonal())


def column_weights(energy_K: Tensor, factor_K: Tensor) -> Tensor:
    """Return what an error of each column counts: half way (in logarithms) between the loss of one that nothing makes
    up for and of one that later columns make up for. Between them the result holds best on other texts
    (docs/quantizing.md). energy_K: mean x² of the inputs; factor_K: the diagonal of the factor R.
    """
    weights = energy_K.sqrt() * factor_K.abs()
    return weights.clamp(min=1e-6 * float(weights.mean())) if float(weights.sum()) > 0 else torch.ones_like(weights)


@dataclass(frozen=True)
class Solved:
    """records_NGb: (N, groups, bytes) uint8 in host memory, groups in the order of solving. values_NB: (N, B) f32 where
    the problem lies. loss: a sum."""

    records_NGb: Tensor
    values_NB: Tensor
    loss: float


def can_solve_blocks() -> bool:
    """Whether errors can be fed back into GGML blocks here: native code alone does it."""
    return isinstance(native.load(), native.Library)


def solve(problem: Problem, grid: AnyGrid) -> Solved:
    """Round the columns of a problem, where it lies if that can be: blocks of GGUF are rounded in host memory."""
    library, device = native.load(), problem.targets_NB.device
    if isinstance(library, native.Library) and (device.type == "cpu" or not isinstance(grid, AffineGrid)):
        problem = problem.on("cpu")
        weights = problem.weights_B
        in_file_order = torch.empty_like(weights)
        in_file_order[problem.places_B] = weights
        solved = feedback_blocks(
            library,
            grid.group_type,
            problem.targets_NB,
            in_file_order,
            problem.places_B,
            problem.spread_BB,
            problem.gram_BB,
            rounds=ROUNDS,
            min_zero=grid.min_zero,
        )
        records_NGb, values_NB, loss = solved
        return Solved(records_NGb, values_NB.to(device), loss)
    assert isinstance(grid, AffineGrid), "the caller asks `can_solve_blocks`"
    return solve_in_torch(problem, grid)


def solve_in_torch(problem: Problem, grid: AffineGrid) -> Solved:
    """Do with torch what native code does, on the device of the targets."""
    return _TorchColumns(problem, grid).solve()


class _TorchColumns:
    """The columns while they are solved: transposed, so that a column is contiguous."""

    def __init__(self, problem: Problem, grid: AffineGrid) -> None:
        self._problem, self._grid = problem, grid
        self._spread_BB, self._gram_BB = problem.spread_BB, problem.gram_BB
        self._weights_B = problem.weights_B
        self._work_BN = problem.targets_NB.T.clone(memory_format=torch.contiguous_format)
        self._codes_BN = torch.empty_like(self._work_BN)
        self._values_BN = torch.empty_like(self._work_BN)
        self._scales: list[Tensor] = []
        self._zeros: list[Tensor] = []

    def solve(self) -> Solved:
        for column in range(len(self._work_BN)):
            self._round(column)
        slope_BN = self._gram_BB @ (self._problem.targets_NB.T - self._values_BN)
        for _ in range(ROUNDS):
            self._move_codes(slope_BN)
        loss = ((self._problem.targets_NB.T - self._values_BN) * slope_BN).sum(dtype=torch.float64)
        return Solved(self._records(), self._values_BN.T.contiguous(), float(loss))

    def _round(self, column: int) -> None:
        if column % self._grid.columns == 0:
            group = slice(column, column + self._grid.columns)
            scale, zero = self._grid.fit(self._work_BN[group].T, self._weights_B[group])
            self._scales.append(scale)
            self._zeros.append(zero)
        self._set(column, self._work_BN[column])
        error_N = (self._work_BN[column] - self._values_BN[column]) / self._spread_BB[column, column]
        self._work_BN[column + 1 :].addr_(self._spread_BB[column, column + 1 :], error_N, alpha=-1.0)

    def _move_codes(self, slope_BN: Tensor) -> None:
        for column in range(len(slope_BN)):
            before = self._values_BN[column].clone()
            self._set(column, before + slope_BN[column] / self._gram_BB[column, column])
            slope_BN.addr_(self._gram_BB[column], before - self._values_BN[column])

    def _set(self, column: int, wanted_N: Tensor) -> None:
        group = column // self._grid.columns
        scale, zero = self._scales[group], self._zeros[group]
        self._codes_BN[column] = rtn.nearest_codes(wanted_N, scale, zero)
        self._values_BN[column] = (self._codes_BN[column] - zero) * scale

    def _records(self) -> Tensor:
        codes_BN = torch.empty_like(self._codes_BN, dtype=torch.uint8)
        codes_BN[self._problem.places_B] = self._codes_BN.to(torch.uint8)
        codes = codes_BN.T.reshape(codes_BN.shape[1], -1, self._grid.columns)  # (N, G, C)
        scales = torch.stack(self._scales, 1).half().contiguous().view(torch.uint8).view(*codes.shape[:2], 2)
        zeros = torch.stack(self._zeros, 1).to(torch.uint8).unsqueeze(-1)
        return torch.cat((scales, zeros, torch.zeros_like(zeros), codes), dim=2).cpu()
