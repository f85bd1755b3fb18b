"""Slow, plain versions of the methods, in float64, to compare the fast ones with."""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.methods.base import AffineSettings
from quantize.methods.gptq import best_grid


def gptq(w_NK: Tensor, hessian_KK: Tensor, perm_K: Tensor, settings: AffineSettings, damp: float) -> Tensor:
    """Return the values (N, K) that GPTQ gives, by the inverse Hessian, unblocked, one column after another."""
    w = w_NK.double()[:, perm_K].clone()
    hessian = hessian_KK.double()[perm_K][:, perm_K]
    energy = hessian.diagonal().float()
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(len(hessian))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    values = torch.zeros_like(w)
    for i in range(w.shape[1]):
        if i % settings.group_size == 0:
            group = slice(i, i + settings.group_size)
            scale, zero = (x.double() for x in best_grid(w[:, group].float(), energy[group], settings))
        values[:, i] = ((torch.round(w[:, i] / scale) + zero).clamp(0, 15) - zero) * scale
        error = (w[:, i] - values[:, i]) / upper[i, i]
        w[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    return values[:, torch.argsort(perm_K)]


def relative_error(values_NK: Tensor, w_NK: Tensor, gram_KK: Tensor) -> float:
    """Return ||(W - Q) X||² / ||W X||²."""
    difference = (values_NK - w_NK).double()
    gram, w = gram_KK.double(), w_NK.double()
    return float(((difference @ gram) * difference).sum() / ((w @ gram) * w).sum())
