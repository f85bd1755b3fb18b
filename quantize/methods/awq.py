"""AWQ's scales: columns that matter are scaled up before rounding, and whoever makes the input absorbs the inverse.

The scale is searched over powers of the mean activation, by the true error of the output (arXiv 2306.00978). Who
absorbs it is decided by the caller, and the scaled weight is rounded with error feedback (`gptq.py`), which also
looks for the best range of every group: that takes the place of the paper's clipping. A column without inputs keeps
the scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlocal.weights import AffineWeight
from quantize.methods import rtn
from quantize.methods.base import AffineSettings, Quantized, Statistics

RATIOS = tuple(i / 10 for i in range(10))
STRIP_ROWS = 256
SEARCH_WORK = 5e9
"""Rows x K x K of one candidate's error: a search looks at evenly taken rows when there are more."""
MIN_SEARCH_ROWS, MAX_SEARCH_ROWS = 128, 512
MAX_SCALE = 1e3
"""Bound on a scale and its inverse, so that neither the folded norm nor the weight leaves float16."""


@dataclass(frozen=True)
class Consumer:
    """One linear that reads the scaled input. w_NK: (N, K) f32, all rows or a sample; stats: its own inputs."""

    w_NK: Tensor
    stats: Statistics


class InputError:
    """The mean output error ||D x||² over the inputs seen: by sampled inputs where there are some, else by the matrix.

    At K = 29568 a product with the matrix costs more than with 2048 samples, which rank the candidates as well. device:
    where it computes, which is where the matrix lies.
    """

    def __init__(self, stats: Statistics) -> None:
        self._tokens = max(stats.tokens, 1)
        self._gram_KK = stats.gram_KK
        self.device = torch.device("cpu") if stats.gram_KK is None else stats.gram_KK.device
        self._sample_SK = None if stats.sample_SK is None else stats.sample_SK.to(self.device)
        self._mean_square_K = stats.mean_square_K.to(self.device)

    def of(self, difference_NK: Tensor) -> float:
        """Return the sum over rows of the mean squared error."""
        if self._sample_SK is not None:
            outputs_NS = difference_NK @ self._sample_SK.float().T
            return _total(outputs_NS.square_()) / len(self._sample_SK)
        if self._gram_KK is not None:
            return _total((difference_NK @ self._gram_KK).mul_(difference_NK)) / self._tokens
        return _total(difference_NK.square() * self._mean_square_K)


def search_scale(consumers: Sequence[Consumer], settings: AffineSettings) -> Tensor:
    """Return the scale (K,) f32 of the shared input with the least output error of all consumers together.

    The caller may give a sample of the rows (`sampled_rows`). No scaling at all is one of the candidates, so the
    result is never worse than that on the rows looked at. It is in host memory, wherever it was searched.
    """
    errors = [InputError(c.stats) for c in consumers]
    device = errors[0].device
    consumers = [Consumer(c.w_NK.to(device), c.stats) for c in consumers]
    activity_K = _mean_activity(consumers).to(device)
    magnitude_K = _relative_magnitude(consumers, settings.group_size)
    best, best_error = torch.ones_like(activity_K), torch.inf
    for candidate in _candidates(activity_K, magnitude_K):
        error = sum(e.of(_change(c.w_NK, candidate, settings)) for c, e in zip(consumers, errors, strict=True))
        if error < best_error:
            best, best_error = candidate, error
    return best.cpu()


def round_scaled(
    w_NK: Tensor, stats: Statistics, scale_K: Tensor | None, settings: AffineSettings
) -> Quantized[AffineWeight]:
    """Round W x scale to the nearest codes; the loss is that of W itself. scale_K: (K,) f32, or None for ones."""
    scale = torch.ones(w_NK.shape[1]) if scale_K is None else scale_K
    weight = rtn.quantize_rtn(w_NK * scale, settings).weight
    return Quantized(weight, _loss(w_NK, weight, scale, InputError(stats)))


def divide_rows(weight: AffineWeight, scale_N: Tensor) -> AffineWeight:
    """Divide the outputs of a quantized linear: exact but for the rounding of its scales to f16."""
    scales = (weight.scales.float() / scale_N.unsqueeze(1)).half()
    return AffineWeight(weight.codes, scales, weight.zero_points, weight.group_size, weight.g_idx)


def _candidates(activity_K: Tensor, magnitude_K: Tensor) -> list[Tensor]:
    """Return the scales to try: no scaling, and powers of the activity with and without the weights' own size."""
    candidates = [torch.ones_like(activity_K)]
    for ratio in RATIOS:
        candidates.append(_normalized(activity_K.pow(ratio) / (magnitude_K.pow(1.0 - ratio) + 1e-4), activity_K))
        if ratio > 0:
            candidates.append(_normalized(activity_K.pow(ratio), activity_K))
    return candidates


def _normalized(scale_K: Tensor, activity_K: Tensor) -> Tensor:
    """Centre a scale around 1; columns without inputs get exactly 1."""
    alive = activity_K > 0
    if not alive.any():
        return torch.ones_like(scale_K)
    values = scale_K.clamp(min=1e-4)
    centre = (values[alive].max() * values[alive].min()).sqrt()
    return torch.where(alive, (values / centre).clamp(1.0 / MAX_SCALE, MAX_SCALE), 1.0)


def _mean_activity(consumers: Sequence[Consumer]) -> Tensor:
    """Return mean |x| (K,) over the inputs of all consumers, each weighing as many tokens as it saw."""
    distinct = {id(c.stats): c.stats for c in consumers}.values()
    tokens = sum(s.tokens for s in distinct)
    return torch.stack([s.mean_abs_K * (s.tokens / max(tokens, 1)) for s in distinct]).sum(0)


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


def sampled_rows(w_NK: Tensor) -> Tensor:
    """Return as many evenly taken rows as one candidate of a search should look at: a view, any dtype."""
    rows, columns = w_NK.shape
    wanted = min(max(MIN_SEARCH_ROWS, int(SEARCH_WORK / columns**2)), MAX_SEARCH_ROWS)
    return w_NK if rows <= wanted else w_NK[:: -(-rows // wanted)]


def _change(w_NK: Tensor, scale_K: Tensor, settings: AffineSettings) -> Tensor:
    """Return (Q(W s) / s - W)."""
    groups = rtn.split_groups(w_NK * scale_K, settings.group_size)
    values = rtn.fake_quantize(groups, groups.amin(-1), groups.amax(-1), settings)
    return values.view(w_NK.shape).div_(scale_K).sub_(w_NK)


def _total(values_NM: Tensor) -> float:
    """Sum everything: rows in float32, then their sums in float64."""
    return float(values_NM.sum(1).sum(dtype=torch.float64))


def _loss(w_NK: Tensor, weight: AffineWeight, scale_K: Tensor, error: InputError) -> float:
    step = -(-len(w_NK) // len(sampled_rows(w_NK)))
    rows_NK = w_NK[::step].contiguous()
    part = AffineWeight(weight.codes[::step], weight.scales[::step], weight.zero_points[::step], weight.group_size)
    total = error.of(rows_NK.to(error.device))
    lost_NK = rtn.decode(part).div_(scale_K).sub_(rows_NK)
    return error.of(lost_NK.to(error.device)) / total if total > 0 else 0.0
