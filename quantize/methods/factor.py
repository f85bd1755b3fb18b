"""The triangular factor of a damped Gram matrix: H = R R^T with R upper triangular, in place and by blocks.

R serves GPTQ without any inverse: column i of R says how the errors of columns 0..i reach component i of the
loss ||(W - Q) R||². The factor overwrites the upper triangle; the lower one keeps the sums, so a failed attempt
is undone without a second matrix: 3.5 GB at K = 29568.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
DAMP_STEP = 0.01
MAX_DAMP = 1.0
MAX_FLOAT64_COLUMNS = 8192
"""Up to here a float64 copy (512 MB) may be tried before the damping is raised."""


def factorize(hessian_KK: Tensor, damp: float) -> tuple[Tensor, float]:
    """Overwrite `hessian_KK` (f32, symmetric, positive diagonal) with R; return it and the damping that was needed.

    damp: share of the mean diagonal that is added to the diagonal; raised by steps until the matrix is definite.
    Only the upper triangle of the result is meant; the lower one is left as scratch.
    """
    diagonal = hessian_KK.diagonal().clone()
    mean = float(diagonal.mean())
    while damp <= MAX_DAMP:
        damped = diagonal + damp * mean
        hessian_KK.diagonal().copy_(damped)
        if _factor_in_place(hessian_KK):
            return hessian_KK, damp
        _restore_upper(hessian_KK, damped)
        if len(hessian_KK) <= MAX_FLOAT64_COLUMNS:
            exact = hessian_KK.double()
            if _factor_in_place(exact):
                return hessian_KK.copy_(exact), damp
        damp += DAMP_STEP
    raise AssertionError("a symmetric matrix with twice its mean diagonal added is definite")


def _factor_in_place(matrix_KK: Tensor) -> bool:
    """Factor from the last block to the first; False where a diagonal block is not definite."""
    size = len(matrix_KK)
    for start in reversed(range(0, size, BLOCK)):
        stop = min(start + BLOCK, size)
        corner = _upper_factor(matrix_KK[start:stop, start:stop])
        if corner is None:
            return False
        matrix_KK[start:stop, start:stop].copy_(corner + matrix_KK[start:stop, start:stop].tril(-1))
        above = matrix_KK[:start, start:stop]
        # above = X corner^T, so X = above corner^-T
        above.copy_(torch.linalg.solve_triangular(corner.T, above, upper=False, left=False))
        for row in range(0, start, BLOCK):
            rows = above[row : row + BLOCK]
            matrix_KK[row : row + BLOCK, row:start] -= rows @ above[row:].T
    return True


def _upper_factor(block: Tensor) -> Tensor | None:
    """Return upper triangular R with R R^T = block (its upper triangle is read), or None; solved in float64."""
    reversed_lower = block.double().flip(0, 1).tril()
    symmetric = reversed_lower + reversed_lower.tril(-1).T
    lower, info = torch.linalg.cholesky_ex(symmetric)
    if int(info) != 0 or not torch.isfinite(lower).all():
        return None
    upper: Tensor = lower.flip(0, 1).to(block.dtype)
    return upper


def _restore_upper(matrix_KK: Tensor, diagonal_K: Tensor) -> None:
    """Bring the upper triangle back from the lower one, which factoring leaves untouched."""
    size = len(matrix_KK)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        corner = matrix_KK[start:stop, start:stop].tril(-1)
        matrix_KK[start:stop, start:stop] = corner + corner.T
        matrix_KK[start:stop, stop:] = matrix_KK[stop:, start:stop].T
    matrix_KK.diagonal().copy_(diagonal_K)
