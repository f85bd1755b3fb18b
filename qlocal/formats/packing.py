"""Four-bit codes in int32 words: AWQ's, GPTQ's and the neutral order. Whole-tensor operations on any device.

Neutral codes: (N, K/2) uint8, column 2j in the low nibble of byte j. Nibble i of a word is bits 4i..4i+3; on a
little-endian machine nibbles 2b and 2b+1 are byte b, which is what every function below relies on.
"""

from __future__ import annotations

import torch
from torch import Tensor

# AWQ: nibble i of a word holds column AWQ_ORDER[i] of its eight; column j lies in nibble AWQ_INVERSE[j].
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AWQ_INVERSE = (0, 4, 1, 5, 2, 6, 3, 7)


def pack_codes(codes: Tensor) -> Tensor:
    """Pack (N, K) uint8 0..15 into neutral codes (N, K/2) uint8."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_codes(packed: Tensor) -> Tensor:
    """Unpack neutral codes (N, K/2) uint8 into (N, K) uint8."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)


def codes_from_gptq(qweight: Tensor) -> Tensor:
    """Turn GPTQ's (K/8, N) int32, packed along K, into neutral codes (N, K/2): the words are the same."""
    return qweight.T.contiguous().view(torch.uint8)


def codes_to_gptq(packed: Tensor) -> Tensor:
    """Turn neutral codes (N, K/2) into GPTQ's (K/8, N) int32."""
    return packed.contiguous().view(torch.int32).T.contiguous()


def codes_from_awq(qweight: Tensor) -> Tensor:
    """Turn AWQ's (K, N/8) int32, interleaved along N, into neutral codes (N, K/2)."""
    rows, words = qweight.shape
    raw = qweight.contiguous().view(torch.uint8).view(rows // 2, 2, words, 4)
    even, odd = raw[:, 0], raw[:, 1]  # (K/2, N/8, 4): inputs 2j and 2j+1
    nibbles = torch.stack(((even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)), dim=-1)  # (K/2, N/8, 4, 2)
    columns = nibbles.view(rows // 2, words, 8)[:, :, list(AWQ_INVERSE)]
    return columns.view(rows // 2, words * 8).T.contiguous()


def codes_to_awq(packed: Tensor) -> Tensor:
    """Turn neutral codes (N, K/2) into AWQ's (K, N/8) int32."""
    outputs, half = packed.shape
    nibbles = packed.T.reshape(half, outputs // 8, 8)[:, :, list(AWQ_ORDER)]  # low: input 2j, high: input 2j+1
    first, second = nibbles[..., 0::2], nibbles[..., 1::2]  # (K/2, N/8, 4)
    even = (first & 15) | (second << 4)
    odd = (first >> 4) | (second & 0xF0)
    return torch.stack((even, odd), dim=1).view(half * 2, outputs // 2).view(torch.int32)


def zeros_from_words(qzeros: Tensor, order: tuple[int, ...] | None = None) -> Tensor:
    """Unpack (G, N/8) int32, packed along N, into (N, G) uint8; `order` is AWQ_INVERSE for AWQ's interleaving."""
    groups, words = qzeros.shape
    nibbles = unpack_codes(qzeros.contiguous().view(torch.uint8)).view(groups, words, 8)
    if order is not None:
        nibbles = nibbles[:, :, list(order)]
    return nibbles.reshape(groups, words * 8).T.contiguous()


def zeros_to_words(zero_points: Tensor, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack (N, G) uint8 0..15 into (G, N/8) int32; `order` is AWQ_ORDER for AWQ's interleaving."""
    outputs, groups = zero_points.shape
    nibbles = zero_points.T.reshape(groups, outputs // 8, 8)
    if order is not None:
        nibbles = nibbles[:, :, list(order)]
    return pack_codes(nibbles.reshape(groups, outputs)).contiguous().view(torch.int32)
