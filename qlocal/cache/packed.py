"""Vectors of a head in 8 or 4 bits: rotated, then rounded by groups of 32 values. Knows no cache.

The rotation is a normalized Hadamard matrix: it spreads a large channel over all of a head, so that a group has no
outlier. Its products with a vector are Gaussian, near enough.
q8: a float16 scale for 32 values, 255 even levels.
q4: a scale for 16 values, of 8 bits: the upper half of a positive float16 (5 bits of exponent, 3 of mantissa). The 16
levels lie closer around zero, on a cubic that costs a kernel two products: u (1 + BEND u²), u = -7.5, -6.5, ..., 7.5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROUP = 32
BEND = 0.007
PACKED_BITS = {"q8": 8, "q4": 4}
SCALE_BYTES = 2
"""Of a group, in either type."""
_LARGEST_RANGE, _NUM_RANGES = 1.25, 6
"""Where the largest level of q4 may lie, as a share of the largest value; as many scales from there down are tried."""
_STEPS = torch.arange(8) + 0.5
_LEVELS = _STEPS * (1 + BEND * _STEPS**2)  # of positive values; the others mirror them
_BOUNDS = (_LEVELS[1:] + _LEVELS[:-1]) / 2


def group_size_of(head_dim: int) -> int:
    """Return how many values of a head are a group: 32, or the largest power of two that divides the head."""
    return min(GROUP, head_dim & -head_dim)


def rotate(x: Tensor) -> Tensor:
    """Multiply (..., Dh) f32 by the normalized Hadamard matrix, its own inverse.

    Where Dh is no power of two, its largest power of two rotates pieces of the head.
    """
    size = x.shape[-1] & -x.shape[-1]
    pieces, width = torch.unflatten(x, -1, (-1, size)), 1
    while width < size:
        first, second = torch.unflatten(pieces, -1, (-1, 2, width)).unbind(-2)
        pieces = torch.stack((first + second, first - second), -2).flatten(-3)
        width *= 2
    return (pieces * (1 / math.sqrt(size))).flatten(-2)


def encode(x: Tensor, packed_type: str) -> tuple[Tensor, Tensor]:
    """Round (..., Dh) f32 to codes (..., groups, rows) uint8 and scales (..., groups, 1) f16 or (..., groups, 2).

    q8: a row a value, signed. q4: half as many rows; row i has value i in its lower half and value rows + i in its
    upper one, and the halves of a group have scales of their own, uint8.
    """
    groups = torch.unflatten(x, -1, (-1, group_size_of(x.shape[-1])))
    return _encode_8(groups) if packed_type == "q8" else _encode_4(groups)


def decode(codes: Tensor, scales: Tensor, packed_type: str) -> Tensor:
    """Return what `encode` rounded as (..., Dh) f32."""
    if packed_type == "q8":
        return (codes.view(torch.int8).float() * scales.float()).flatten(-2)
    steps = torch.stack((codes & 15, codes >> 4), -2).float() - 7.5
    scale = _from_byte(scales)[..., None]
    return (steps * (BEND * scale * steps**2 + scale)).flatten(-3)


def _encode_8(groups: Tensor) -> tuple[Tensor, Tensor]:
    scales = (groups.abs().amax(-1, keepdim=True) / 127).half()
    codes = (groups / _divisor(scales.float())).round().clamp(-127, 127).to(torch.int8)
    return codes.view(torch.uint8), scales


def _encode_4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Try a few neighbouring scales and keep the one whose levels are nearest."""
    halves = torch.unflatten(groups, -1, (2, -1))
    bounds, levels = _BOUNDS.to(groups.device), _LEVELS.to(groups.device)
    widest = (halves.abs().amax(-1) * (_LARGEST_RANGE / float(_LEVELS[-1]))).half().view(torch.int16) >> 7
    best_error = torch.full(halves.shape[:-1], math.inf, device=groups.device)
    best_scales = torch.zeros_like(widest)
    best_codes = torch.zeros(halves.shape, dtype=torch.uint8, device=groups.device)
    for below in range(_NUM_RANGES):
        tried = (widest - below).clamp_min(0)
        scale = _from_byte(tried)[..., None]
        steps = torch.bucketize((halves / _divisor(scale)).abs(), bounds, right=True)
        error = (halves.abs() - levels[steps] * scale).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scales = torch.where(better, tried, best_scales)
        codes = torch.where(halves.signbit(), 7 - steps, 8 + steps).to(torch.uint8)
        best_codes = torch.where(better[..., None], codes, best_codes)
    lower, upper = best_codes.unbind(-2)
    return lower | (upper << 4), best_scales.to(torch.uint8)


def _from_byte(scales: Tensor) -> Tensor:
    """Return 8-bit scales as f32."""
    return (scales.to(torch.int16) << 7).view(torch.float16).float()


def _divisor(scales: Tensor) -> Tensor:
    """Return scales to divide by: 1 where all values are zero."""
    return scales.masked_fill(scales == 0, 1.0)
