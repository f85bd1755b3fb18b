"""Plain rounding to 4-bit groups, and the grid (scales, zero points, codes) that AWQ and GPTQ share.

A group's range always includes 0; codes are made with the scale as it will be stored (f16).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlocal.errors import FormatError
from qlocal.formats.packing import pack_codes, unpack_codes
from qlocal.weights import AffineWeight
from quantize.methods.base import AffineSettings, Quantized, Statistics

MAX_CODE = 15
SYMMETRIC_ZERO = 8
SMALLEST_SCALE = 2.0**-24  # the smallest positive f16
EMPTY_SCALE = 2.0**-14  # the smallest normal f16, for groups of zeros: small, so that no kernel cancels large terms
MAX_F16 = 65504.0


def quantize_rtn(w_NK: Tensor, settings: AffineSettings, stats: Statistics | None = None) -> Quantized[AffineWeight]:
    """Round every weight to the nearest code of its group. w_NK: (N, K) f32."""
    groups_NGg = split_groups(w_NK, settings.group_size)
    scales_NG, zeros_NG = grid(groups_NGg.amin(-1), groups_NGg.amax(-1), settings)
    codes_NGg = nearest_codes(groups_NGg, scales_NG.unsqueeze(-1), zeros_NG.unsqueeze(-1))
    weight = affine_weight(codes_NGg.view(w_NK.shape).to(torch.uint8), scales_NG, zeros_NG, settings.group_size)
    return Quantized(weight, diagonal_loss(w_NK, decode(weight), stats))


def split_groups(w_NK: Tensor, group_size: int) -> Tensor:
    """View (N, K) as (N, G, group_size)."""
    return w_NK.view(w_NK.shape[0], -1, group_size)


def grid(low_NG: Tensor, high_NG: Tensor, settings: AffineSettings) -> tuple[Tensor, Tensor]:
    """Return scales (f32 holding f16 values) and zero points (f32) for the ranges low..high of groups."""
    low, high = low_NG.clamp(max=0.0), high_NG.clamp(min=0.0)
    span = 2.0 * torch.maximum(-low, high) if settings.symmetric else high - low
    if settings.min_zero:  # above such a zero point there are fewer codes
        span = torch.maximum(span, high * (MAX_CODE / (MAX_CODE - settings.min_zero)))
    if not torch.isfinite(span).all() or span.max() / MAX_CODE > MAX_F16:
        raise FormatError("a group's scale is beyond the range of float16", hint="The weights are not sensible.")
    scales = (span / MAX_CODE).half().float().clamp(min=SMALLEST_SCALE)
    scales = torch.where(span > 0, scales, EMPTY_SCALE)
    if settings.symmetric:
        return scales, torch.full_like(scales, SYMMETRIC_ZERO)
    zeros = torch.round(-low / scales).clamp(settings.min_zero, MAX_CODE)
    return scales, torch.where(span > 0, zeros, float(SYMMETRIC_ZERO))


def nearest_codes(values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Return the codes nearest to the values, all f32 of shapes that broadcast."""
    return (values / scales).round_().add_(zeros).clamp_(0, MAX_CODE)


def fake_quantize(groups_NGg: Tensor, low_NG: Tensor, high_NG: Tensor, settings: AffineSettings) -> Tensor:
    """Return the values (N, G, g) f32 that codes over the ranges low..high stand for."""
    scales, zeros = (x.unsqueeze(-1) for x in grid(low_NG, high_NG, settings))
    return nearest_codes(groups_NGg, scales, zeros).sub_(zeros).mul_(scales)


def affine_weight(
    codes_NK: Tensor, scales_NG: Tensor, zeros_NG: Tensor, group_size: int, g_idx: Tensor | None = None
) -> AffineWeight:
    """Put codes (N, K) uint8, scales and zero points into the neutral form."""
    return AffineWeight(pack_codes(codes_NK), scales_NG.half(), zeros_NG.to(torch.uint8), group_size, g_idx)


def decode(weight: AffineWeight) -> Tensor:
    """Return the values (N, K) f32 of an affine weight."""
    codes = unpack_codes(weight.codes)
    if weight.g_idx is None:
        groups = split_groups(codes.float(), weight.group_size)
        shifted = groups - weight.zero_points.unsqueeze(-1).float()
        return (shifted * weight.scales.unsqueeze(-1).float()).view(weight.shape)
    of_column = weight.g_idx.long()
    return (codes.float() - weight.zero_points[:, of_column].float()) * weight.scales[:, of_column].float()


def diagonal_loss(w_NK: Tensor, q_NK: Tensor, stats: Statistics | None) -> float:
    """Return the relative error, columns weighted by their mean x² where inputs were seen."""
    weights_K = stats.mean_square_K if stats is not None and stats.tokens else torch.ones(w_NK.shape[1])
    error = ((w_NK - q_NK).square().sum(0, dtype=torch.float64) * weights_K).sum()
    total = (w_NK.square().sum(0, dtype=torch.float64) * weights_K).sum()
    return float(error / total) if total > 0 else 0.0
