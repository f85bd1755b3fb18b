"""Slow, plain versions of the methods, in float64, to compare the fast ones with."""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.methods import rtn
from quantize.methods.grids import AffineGrid


def gptq(w_NK: Tensor, hessian_KK: Tensor, perm_K: Tensor, grid: AffineGrid, damp: float) -> Tensor:
    """Return the values (N, K) that GPTQ gives, by the inverse Hessian, unblocked, one column after another."""
    w = w_NK.double()[:, perm_K].clone()
    hessian = hessian_KK.double()[perm_K][:, perm_K]
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    weights = (hessian.diagonal().sqrt() / upper.diagonal()).float()
    values = torch.zeros_like(w)
    for i in range(w.shape[1]):
        if i % grid.columns == 0:
            group = slice(i, i + grid.columns)
            scale, zero = (x.double() for x in grid.fit(w[:, group].float(), weights[group]))
        values[:, i] = (rtn.nearest_codes(w[:, i], scale, zero) - zero) * scale
        error = (w[:, i] - values[:, i]) / upper[i, i]
        w[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    return values[:, torch.argsort(perm_K)]


def relative_error(values_NK: Tensor, w_NK: Tensor, gram_KK: Tensor) -> float:
    """Return ||(W - Q) X||² / ||W X||²."""
    difference = (values_NK - w_NK).double()
    gram, w = gram_KK.double(), w_NK.double()
    return float(((difference @ gram) * difference).sum() / ((w @ gram) * w).sum())
