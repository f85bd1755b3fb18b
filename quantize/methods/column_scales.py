"""AWQ's scales: columns that matter are scaled up before rounding, and whoever makes the input absorbs the inverse.

The paper (arXiv 2306.00978) searches powers of the mean activation by the output error of plain rounding. Here the
scaled weight is rounded with error feedback (`gptq.py`), which makes up for what correlated inputs lose: so a column
counts by what of its error is left then, and candidates are powers of that. Who absorbs the scale is decided by the
caller. The feedback also looks for the best range of every group: that takes the place of the paper's clipping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.weights import AffineWeight
from quantize.methods import rtn
from quantize.methods.base import AffineSettings, Quantized

POWERS = tuple(i / 10 for i in range(10))
"""Of the root of what a column counts."""
SIZE_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the inverse of a column's weights, relative to the largest of their groups."""
STRIP_ROWS = 256
MAX_SEARCH_ROWS = 512
"""A search looks at evenly taken rows when there are more."""
MAX_SCALE = 1e3
"""Bound on a scale and its inverse, so that neither the folded norm nor the weight leaves float16."""


@dataclass(frozen=True)
class Consumer:
    """One linear that reads the scaled input. w_NK: (N, K) f32, all rows or a sample; weights_K: (K,) f32 what an error
    of each column counts, 0 for columns without inputs."""

    w_NK: Tensor
    weights_K: Tensor


def search_scale(consumers: Sequence[Consumer], settings: AffineSettings) -> Tensor:
    """Return the scale (K,) f32 of the shared input with the least error of all consumers together.

    No scaling at all is one of the candidates. It is in host memory, wherever it was searched.
    """
    device = consumers[0].weights_K.device
    consumers = [Consumer(c.w_NK.to(device), c.weights_K) for c in consumers]
    weights_K = torch.stack([c.weights_K for c in consumers]).mean(0)
    magnitude_K = _relative_magnitude(consumers, settings.group_size)
    best, best_error = torch.ones_like(weights_K), torch.inf
    for candidate in _candidates(weights_K, magnitude_K):
        error = sum(_error(c, candidate, settings) for c in consumers)
        if error < best_error:
            best, best_error = candidate, error
    return best.cpu()


def round_scaled(w_NK: Tensor, scale_K: Tensor | None, settings: AffineSettings) -> Quantized[AffineWeight]:
    """Round W x scale to the nearest codes; the loss is that of W itself, all columns alike. scale_K: (K,) f32, or None
    for ones."""
    scale = torch.ones(w_NK.shape[1]) if scale_K is None else scale_K
    weight = rtn.quantize_rtn(w_NK * scale, settings).weight
    return Quantized(weight, rtn.diagonal_loss(w_NK, rtn.decode(weight).div_(scale), None))


def divide_rows(weight: AffineWeight, scale_N: Tensor) -> AffineWeight:
    """Divide the outputs of a quantized linear: exact but for the rounding of its scales to f16."""
    scales = (weight.scales.float() / scale_N.unsqueeze(1)).half()
    return AffineWeight(weight.codes, scales, weight.zero_points, weight.group_size, weight.g_idx)


def sampled_rows(w_NK: Tensor) -> Tensor:
    """Return as many evenly taken rows as a search should look at: a view, any dtype."""
    return w_NK[:: -(-len(w_NK) // MAX_SEARCH_ROWS)]


def _candidates(weights_K: Tensor, magnitude_K: Tensor) -> Iterator[Tensor]:
    """Yield the scales to try: no scaling, and powers of what columns count by powers of their own size."""
    alive_K = weights_K > 0
    yield torch.ones_like(weights_K)
    for power in POWERS:
        for size_power in SIZE_POWERS:
            yield _centred(weights_K.pow(power / 2) / (magnitude_K + 1e-4).pow(size_power), alive_K)


def _centred(scale_K: Tensor, alive_K: Tensor) -> Tensor:
    """Centre a scale around 1; columns without inputs get exactly 1."""
    if not alive_K.any():
        return torch.ones_like(scale_K)
    values = scale_K.clamp(min=1e-6)
    centre = (values[alive_K].max() * values[alive_K].min()).sqrt()
    return torch.where(alive_K, (values / centre).clamp(1.0 / MAX_SCALE, MAX_SCALE), 1.0)


def _relative_magnitude(consumers: Sequence[Consumer], group_size: int) -> Tensor:
    """Return the mean over rows of |w| relative to the largest of its group: (K,) f32."""
    first = consumers[0].w_NK
    total = torch.zeros(first.shape[1], dtype=torch.float64, device=first.device)
    rows = 0
    for consumer in consumers:
        for part in torch.split(consumer.w_NK, STRIP_ROWS):
            groups = rtn.split_groups(part.abs(), group_size)
            largest = groups.amax(-1, keepdim=True).clamp(min=1e-12)
            total += (groups / largest).flatten(1).sum(0, dtype=torch.float64)
            rows += len(part)
    return (total / rows).float()


def _error(consumer: Consumer, scale_K: Tensor, settings: AffineSettings) -> float:
    """Return the weighted error of Q(W s) / s."""
    groups = rtn.split_groups(consumer.w_NK * scale_K, settings.group_size)
    values = rtn.fake_quantize(groups, groups.amin(-1), groups.amax(-1), settings)
    lost = values.view(consumer.w_NK.shape).div_(scale_K).sub_(consumer.w_NK)
    return float((lost.square_().sum(0, dtype=torch.float64) * consumer.weights_K).sum())
